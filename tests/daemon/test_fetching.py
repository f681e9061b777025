"""Files that are not there yet: fetched in the background, and what clients hear meanwhile."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from edged.config import Source
from edged.daemon.fetching import Fetching
from tests.daemon.appliance import ROOT, AnswerError, Appliance, closing, needs_engine
from tests.daemon.support import box as made_plan
from tests.daemon.support import is_alive, model, until
from tests.hub import Hub, served
from tests.models.tiny import tiny

pytestmark = needs_engine

REPOSITORY = "Org/Model-GGUF"
SOURCE = f"hf:{REPOSITORY}:Q4_K_M"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with served() as found:
        found.add(REPOSITORY, {"Model-Q4_K_M.gguf": tiny("plain").read_bytes()})
        yield found


@pytest.fixture
async def box(hub: Hub, tmp_path: Path) -> AsyncIterator[Appliance]:
    appliance = Appliance(tmp_path)
    appliance.write("steady")
    await appliance.start(env=environment(hub, tmp_path))
    async with closing(appliance):
        await appliance.until_logged("daemon.serving")
        yield appliance


def environment(hub: Hub, folder: Path) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
        "XDG_STATE_HOME": str(folder / "state"),
        "NO_PROXY": "*",
    }


def with_fetched(box: Appliance, more: str = "", source: str = SOURCE) -> str:
    return box.toml("steady") + f'[models.far]\ngguf = "{source}"\n{more}\n'


async def until_fetch(box: Appliance, **wanted: Any) -> dict[str, Any]:
    """Wait until the fetch of `far` has these values."""
    async with asyncio.timeout(60):
        while True:
            models = {m["name"]: m for m in (await box.status())["models"]}
            found: dict[str, Any] = (models.get("far") or {}).get("fetch") or {}
            if found and all(found[key] == value for key, value in wanted.items()):
                return found
            await asyncio.sleep(0.02)


async def test_a_saved_line_becomes_a_model(hub: Hub, box: Appliance) -> None:
    before = await box.until_model("steady", state="stopped")
    hub.gate = threading.Event()
    box.save(with_fetched(box))
    await box.until_model("far", state="fetching")
    await until_fetch(box, file="Model-Q4_K_M.gguf")
    with pytest.raises(AnswerError) as caught:
        await box.ask("far", "echo one")
    assert caught.value.code == "model_loading"
    body = {"model": "far", "messages": [{"role": "user", "content": "echo one"}]}
    answer = await box.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 5
    assert re.search(r"being fetched: .*of \d", answer.json()["error"]["message"])
    assert await box.ask("steady", "echo two")
    hub.gate.set()
    await box.until_model("far", state="stopped")
    assert await box.ask("far", "echo three")
    assert (await box.model("far"))["fetch"] is None
    assert (await box.model("steady"))["restarts"] == before["restarts"]


async def test_startup_model_in_fetching_is_missed_but_does_not_hold_up_the_start(
    hub: Hub, tmp_path: Path
) -> None:
    hub.gate = threading.Event()
    box = Appliance(tmp_path)
    box.save(with_fetched(box, 'load = "startup"'))
    await box.start(env=environment(hub, tmp_path))
    async with closing(box):
        await box.until_logged("daemon.ready")
        answer = await box.client.get("/ready")
        assert answer.status_code == 503
        assert answer.json()["waiting_for"] == ["far is fetching"]
        hub.gate.set()
        await box.until_model("far", state="ready")
        assert (await box.client.get("/ready")).status_code == 200


async def test_reason_of_a_failed_fetch_is_shown(box: Appliance) -> None:
    box.save(with_fetched(box, source=f"hf:{REPOSITORY}:Q9_K"))
    model = await box.until_model("far", state="failed")
    assert model["error"] == f"{REPOSITORY} has no Q9_K; it has Q4_K_M"
    with pytest.raises(AnswerError, match=r"cannot be fetched: .* has no Q9_K") as caught:
        await box.ask("far", "echo one")
    assert caught.value.code == "model_failed"
    box.save(with_fetched(box))
    await box.until_model("far", state="stopped")


async def test_model_that_is_taken_out_is_not_fetched_on(hub: Hub, box: Appliance) -> None:
    hub.gate = threading.Event()
    box.save(with_fetched(box))
    await until_fetch(box, file="Model-Q4_K_M.gguf")
    (child,) = [pid for pid in box.workers() if is_fetching(pid)]
    box.write("steady")
    await until(lambda: not is_alive(child))


async def test_fetch_dies_with_a_killed_daemon(hub: Hub, box: Appliance) -> None:
    hub.gate = threading.Event()
    box.save(with_fetched(box))
    await until_fetch(box, file="Model-Q4_K_M.gguf")
    (child,) = [pid for pid in box.workers() if is_fetching(pid)]
    box.process.kill()
    await box.exit()
    await until(lambda: not is_alive(child))


def is_fetching(pid: int) -> bool:
    return b"edged.pull" in Path(f"/proc/{pid}/cmdline").read_bytes()


async def test_files_that_another_process_brings_are_taken(hub: Hub, box: Appliance) -> None:
    folder, environ = box.folder, environment(hub, box.folder)
    hub.broken = 1000  # the daemon's own try goes wrong, and it waits before the next
    box.save(with_fetched(box))
    await box.until_model("far", state="fetching")
    hub.broken = 0
    brought = folder / "brought.toml"
    brought.write_text(box.config.read_text())
    command = [sys.executable, "-m", "edged.pull", "--config", str(brought), "far"]
    await asyncio.to_thread(
        subprocess.run, command, check=True, cwd=ROOT, env=os.environ | environ, timeout=60
    )
    await box.until_model("far", state="stopped")


async def test_missing_adapter_comes_later_than_its_model(box: Appliance) -> None:
    gguf = box.gguf("steady")
    box.save(
        box.toml() + f'[models.far]\ngguf = "file:{gguf}"\n[models.far.llamacpp.lora]\n'
        f'style = "hf:Org/None"\n'
    )
    model = await box.until_model("far", state="stopped")
    assert "hf:Org/None is not on this box" in model["adapters"][0]["error"]
    fetch = await until_fetch(box, is_hopeless=True)
    assert "no repository Org/None" in fetch["error"]
    assert await box.ask("far", "echo one")


async def test_hopeless_fetch_is_tried_again_when_told_to_reload(hub: Hub, box: Appliance) -> None:
    files = hub.repositories.pop(REPOSITORY)
    box.save(with_fetched(box))
    await box.until_model("far", state="failed")
    hub.repositories[REPOSITORY] = files
    box.process.send_signal(signal.SIGHUP)
    await box.until_model("far", state="stopped")


async def test_model_whose_new_file_is_on_its_way_serves_from_the_old_one(
    hub: Hub, box: Appliance
) -> None:
    hub.gate = threading.Event()
    pid = await box.ask("steady", "pid")
    far = f'[models.steady]\ngguf = "{SOURCE}"\n'
    box.save(box.toml() + far)

    async def until_steady(is_so: Callable[[dict[str, Any]], bool]) -> None:
        async with asyncio.timeout(60):
            while True:
                if is_so(await box.model("steady")):
                    return
                await asyncio.sleep(0.02)

    await until_steady(lambda model: model["fetch"] is not None)
    assert await box.ask("steady", "pid") == pid
    assert (await box.model("steady"))["state"] == "ready"
    hub.gate.set()
    await until_steady(lambda model: str(model["pid"]) != pid and model["state"] == "ready")
    assert await box.ask("steady", "pid") != pid
    assert (await box.model("steady"))["fetch"] is None
    assert (await box.model("steady"))["rolled_back"] is None


@pytest.mark.parametrize("child", [None, "#!/bin/sh\necho nonsense\n"], ids=["none", "nonsense"])
async def test_child_that_is_of_no_use_costs_the_fetch_and_not_the_daemon(
    child: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    if child is not None:
        program.write_text(child)
        program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    fetching = Fetching(tmp_path / "models.toml", lambda: None)
    far = replace(model("far"), launch=None, missing=(Source("hf", "Org/Model"),))
    fetching.follow(made_plan(far), afresh=True)
    at_work = asyncio.create_task(fetching.run())

    def error() -> str:
        found = fetching.of("far")
        return (found.error or "") if found else ""

    await until(lambda: at_work.done() or error())
    assert error().startswith("the fetching process cannot be used: ")
    assert not at_work.done()
    at_work.cancel()
    await asyncio.wait([at_work])
