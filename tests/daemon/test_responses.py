"""Stored responses over the life of a daemon: restarts, stops, crashes. On fake workers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.daemon.appliance import Appliance, appliance, needs_engine

pytestmark = needs_engine

PATH = "/v1/responses"


@asynccontextmanager
async def daemon(folder: Path, name: str, **keys: Any) -> AsyncIterator[Appliance]:
    """Start a daemon with a folder of its own and the state of the others."""
    (folder / name).mkdir()
    env = {"XDG_STATE_HOME": str(folder / "state"), "STATE_DIRECTORY": ""}
    async with appliance(folder / name, "a", env=env, **keys) as box:
        yield box


async def ask(box: Appliance, text: str, **more: Any) -> dict[str, Any]:
    response = await box.client.post(PATH, json={"model": "a", "input": text} | more)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def found(box: Appliance, response_id: str) -> dict[str, Any]:
    reply: dict[str, Any] = (await box.client.get(f"{PATH}/{response_id}")).json()
    return reply


async def until_running(box: Appliance, response_id: str) -> None:
    async with asyncio.timeout(60):
        while (await found(box, response_id))["status"] != "in_progress":  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_conversation_outlives_the_daemon(tmp_path: Path) -> None:
    async with daemon(tmp_path, "first") as box:
        first = await ask(box, "echo one")
        assert await box.stop() == 0
    assert (tmp_path / "state/edged/responses.db").stat().st_mode & 0o777 == 0o600
    async with daemon(tmp_path, "second") as box:
        assert await found(box, first["id"]) == first
        second = await ask(box, "echo two", previous_response_id=first["id"])
        listed = await box.client.get(f"{PATH}/{second['id']}/input_items?order=asc")
        assert [item["content"][0]["text"] for item in listed.json()["data"]] == [
            "echo one", "one", "echo two",
        ]  # fmt: skip
        assert await box.stop() == 0


async def test_background_response_ends_with_a_daemon_that_stops(tmp_path: Path) -> None:
    async with daemon(tmp_path, "first", finish_s=1) as box:
        quick = await ask(box, "count 5 0.05", background=True)
        endless = await ask(box, "count 1000000 0.05", background=True)
        await until_running(box, endless["id"])
        assert await box.stop() == 0
        assert "fault" not in box.log
    async with daemon(tmp_path, "second") as box:
        done = await found(box, quick["id"])
        assert done["status"] == "completed"
        assert done["output"][0]["content"][0]["text"] == "0 1 2 3 4 "
        failed = await found(box, endless["id"])
        assert failed["status"] == "failed"
        assert failed["error"]["code"] == "server_error"
        assert failed["output"][0]["content"][0]["text"].startswith("0 1 ")


async def test_background_response_fails_with_a_daemon_that_crashes(tmp_path: Path) -> None:
    async with daemon(tmp_path, "first") as box:
        kept = await ask(box, "echo one")
        lost = await ask(box, "count 1000000 0.05", background=True)
        await until_running(box, lost["id"])
        box.process.send_signal(signal.SIGKILL)
        await box.exit()
    async with daemon(tmp_path, "second") as box:
        assert await found(box, kept["id"]) == kept
        failed = await found(box, lost["id"])
        assert failed["status"] == "failed"
        assert "before the response was complete" in failed["error"]["message"]


async def test_limits_change_with_a_reload(tmp_path: Path) -> None:
    async with daemon(tmp_path, "first") as box:
        kept = await ask(box, "echo one")
        box.save(box.toml("a").replace("[defaults]", 'responses_keep = "0"\n[defaults]'))
        await box.until_logged("config.applied")
        assert (await ask(box, "echo two"))["store"] is False
        response = await box.client.post(
            PATH, json={"model": "a", "input": "echo", "previous_response_id": kept["id"]}
        )
        assert response.status_code == 400
        assert "responses_keep" in response.json()["error"]["message"]
