"""Orders to a running daemon, over its socket and from the command line, with fake workers."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import sys
from pathlib import Path

import httpx
import pytest

from tests.daemon.appliance import ROOT, AnswerError, Appliance, appliance, closing, needs_engine
from tests.daemon.support import PATIENCE_S, is_alive, until

pytestmark = needs_engine


async def edged(box: Appliance, *arguments: str) -> tuple[int, str, str]:
    """Run a command beside the daemon; return exit code, stdout and stderr."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "edged", *arguments),
        cwd=ROOT,
        env=os.environ | {"EDGED_ADMIN_SOCKET": str(box.admin_socket), "NO_COLOR": "1"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    return process.returncode or 0, out.decode(), err.decode()


async def test_orders_are_for_the_socket_alone(tmp_path: Path) -> None:
    async with appliance(tmp_path, "a") as box:
        mode = box.admin_socket.stat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o660
        assert str(box.admin_socket) not in " ".join((await box.status())["listen"])
        for method, path in (
            ("POST", "reload"),
            ("POST", "load/a"),
            ("POST", "unload/a"),
            ("POST", "drain/a"),
            ("GET", "status"),
            ("GET", "log"),
        ):
            response = await box.client.request(method, f"/admin/{path}")
            assert response.status_code == 403, path
            assert response.json()["error"]["code"] == "admin_only"
        assert (await box.order("load/a")).json()["state"] == "ready"
        assert (await box.order("load/nobody")).status_code == 404
        async with box.admin() as client:  # the whole API is there too
            assert (await client.get("/v1/models")).json()["data"][0]["id"] == "a"


async def test_reload_is_done_when_it_returns_and_tells_what_is_wrong(tmp_path: Path) -> None:
    async with appliance(tmp_path, "a") as box:
        box.config.write_text(box.toml("a", "b"))
        code, out, err = await edged(box, "reload")
        assert (code, err) == (0, "")
        # the watch may have been faster: then nothing is left to change
        assert [m["name"] for m in (await box.status())["models"]] == ["a", "b"]
        assert "in force" in out
        box.config.write_text(box.toml("a") + "[models.c]\ngguf = 5\ncontxt = 1\n")
        code, out, err = await edged(box, "reload")
        assert (code, out) == (1, "")
        assert err.count("models.toml:") == 2
        assert len((await box.status())["models"]) == 2


async def test_unload_lets_requests_finish_and_the_next_one_loads_again(tmp_path: Path) -> None:
    async with appliance(tmp_path, "a load = 'startup'") as box:
        await box.until_model("a", state="ready")
        pid = (await box.model("a"))["pid"]
        stream = asyncio.create_task(box.ask("a", "count 20 0.05"))
        await box.until_model("a", open=1)
        left = await box.order("unload/a")
        assert left.json()["state"] == "stopped"
        assert len((await stream).split()) == 20
        assert not is_alive(pid)
        assert (await box.client.get("/ready")).status_code == 200
        assert await box.ask("a", "count 1") == "0 "


async def test_drained_model_refuses_until_it_is_loaded(tmp_path: Path) -> None:
    async with appliance(tmp_path, "a--x aliases = ['other']", "b") as box:
        stream = asyncio.create_task(box.ask("a", "count 10 0.05"))
        await box.until_model("a", open=1)
        code, out, _ = await edged(box, "drain", "other")
        assert (code, out) == (0, "a is stopped\n")
        assert len((await stream).split()) == 10
        with pytest.raises(AnswerError) as caught:
            await box.ask("a", "count")
        assert caught.value.code == "model_drained"
        assert "edged load a" in caught.value.message
        box.write("a", "b", "c")  # a reload of others does not bring it back
        assert (await box.order("reload")).status_code == 200
        with pytest.raises(AnswerError):
            await box.ask("a", "count")
        assert (await edged(box, "load", "a"))[0] == 0
        assert await box.ask("a", "count 1") == "0 "


async def test_load_tells_why_it_cannot(tmp_path: Path) -> None:
    async with appliance(tmp_path, "a--bad") as box:
        code, out, err = await edged(box, "load", "a")
        assert (code, out) == (1, "")
        assert "not a model file" in err


async def test_log_is_followed(tmp_path: Path) -> None:
    async with appliance(tmp_path, "a") as box:
        code, out, _ = await edged(box, "logs", "-n", "3")
        assert code == 0
        assert "daemon.serving" in out or "daemon.ready" in out
        assert len(out.splitlines()) <= 3
        async with (
            box.admin() as client,
            client.stream("GET", "/admin/log", params={"follow": "true", "lines": "0"}) as log,
        ):
            await box.ask("a", "stderr 3")
            async for line in log.aiter_lines():
                if "line 2" in line:
                    break


async def test_status_is_streamed(tmp_path: Path) -> None:
    async with appliance(tmp_path, "a") as box:
        states = []
        async with box.admin() as client, client.stream("GET", "/admin/status") as stream:
            async for line in stream.aiter_lines():
                if not line:
                    continue
                states.append(json.loads(line.removeprefix("data: "))["models"][0]["state"])
                if len(states) == 1:
                    await box.order("load/a")
                elif states[-1] == "ready":
                    break
        assert states[0] == "stopped"


async def test_daemon_serves_without_the_socket(tmp_path: Path) -> None:
    box = Appliance(tmp_path)
    box.write("a")
    (tmp_path / "in-the-way").touch()
    await box.start(env={"RUNTIME_DIRECTORY": str(tmp_path / "in-the-way" / "below")})
    async with closing(box):
        await box.until_logged("admin.off")
        assert await box.ask("a", "count 1") == "0 "
        code, _, err = await edged(box, "reload")
        assert code == 1
        assert "does not answer" in err


async def test_socket_of_a_dead_daemon_is_taken_over(tmp_path: Path) -> None:
    async with appliance(tmp_path, "a") as box:
        box.process.kill()
        await box.exit()
        await until(lambda: not is_alive(box.pid))
        assert box.admin_socket.exists()
        await box.start()
        await box.until_logged("daemon.serving")

        async def answers() -> bool:
            try:
                return (await box.order("reload")).status_code == httpx.codes.OK
            except httpx.TransportError:
                return False

        end = asyncio.get_running_loop().time() + PATIENCE_S
        while not await answers():
            assert asyncio.get_running_loop().time() < end, box.log
            await asyncio.sleep(0.05)
        assert await box.stop() == 0
        assert not box.admin_socket.exists()
