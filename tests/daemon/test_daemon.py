"""The whole daemon over real HTTP, with fake workers: start, crash, disconnect, stop."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
from pathlib import Path

import httpx
import pytest

from tests.daemon.appliance import AnswerError, Appliance, appliance, needs_engine
from tests.daemon.support import is_alive, until

pytestmark = needs_engine


async def test_answers_by_name_and_alias_with_the_models_sampling(tmp_path: Path) -> None:
    model = 'a aliases = ["b"]; sampling = { temperature = 0.25 }'
    async with appliance(tmp_path, model) as box:
        assert await box.ask("a", "count 3") == "0 1 2 "
        assert await box.ask("b", "sampling") == "0.25"
        with pytest.raises(AnswerError) as caught:
            await box.ask("c", "count")
        assert caught.value.code == "model_not_found"


async def test_ready_names_startup_models_that_are_not(tmp_path: Path) -> None:
    models = "a load = 'startup'", "b--bad load = 'startup'", "c"
    async with appliance(tmp_path, *models) as box:
        await box.until_logged("daemon.ready")
        ready = await box.client.get("/ready")
        assert ready.status_code == 503
        assert len(ready.json()["waiting_for"]) == 1
        assert "b is failed: not a model file" in ready.json()["waiting_for"][0]
        box.write("a load = 'startup'", "c")
        await box.until_logged("config.applied")
        assert (await box.client.get("/ready")).status_code == 200


async def test_killed_worker_costs_only_its_own_requests(tmp_path: Path) -> None:
    async with appliance(tmp_path, "a", "b") as box:
        victim = int(await box.ask("a", "pid"))
        await box.ask("b", "count 1")
        others = [asyncio.create_task(box.ask("b", "count 100 0.05")) for _ in range(4)]
        hit = [asyncio.create_task(box.ask("a", "count 1000 0.05")) for _ in range(4)]
        await box.until_model("a", open=4)
        await box.until_model("b", open=4)
        os.kill(victim, signal.SIGKILL)
        for result in await asyncio.gather(*hit, return_exceptions=True):
            assert isinstance(result, AnswerError)
            assert result.code == "worker_crashed"
            assert "SIGKILL" in result.message
        assert await box.ask("a", "count 2") == "0 1 "
        assert [len(text.split()) for text in await asyncio.gather(*others)] == [100] * 4
        assert (await box.model("a"))["restarts"] == 1
        assert (await box.model("b"))["restarts"] == 0


async def test_500_disconnects_leave_no_sequence_and_no_memory(tmp_path: Path) -> None:
    async with appliance(tmp_path, "a queue = 1000") as box:
        await disconnect(box, 100)
        await until_idle(box)
        before = (await box.status())["memory_bytes"]
        await disconnect(box, 400)
        await until_idle(box)
        assert (await box.status())["memory_bytes"] < before + (8 << 20)
        assert await box.ask("a", "others") == "0"
        assert (await box.model("a"))["restarts"] == 0


async def disconnect(box: Appliance, times: int) -> None:
    chance = random.Random(times)

    async def once() -> None:
        body = {
            "model": "a",
            "messages": [{"role": "user", "content": "count 100000 0.001"}],
            "stream": True,
        }
        async with box.new_client() as client:
            try:
                async with (
                    asyncio.timeout(chance.uniform(0.0, 0.3)),
                    client.stream("POST", "/v1/chat/completions", json=body) as response,
                ):
                    async for _ in response.aiter_bytes():
                        continue
            except TimeoutError:
                return
        raise AssertionError("ended by itself")

    for _ in range(times // 20):
        await asyncio.gather(*[once() for _ in range(20)])


async def until_idle(box: Appliance) -> None:
    await box.until_model("a", open=0, queued=0)
    for _ in range(1000):
        if not (await box.model("a"))["stats"]["running"]:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(await box.model("a"))


async def test_sigterm_lets_streams_finish(tmp_path: Path) -> None:
    async with appliance(tmp_path, "a", "b--slow-60") as box:
        await box.ask("a", "count 1")
        streams = [asyncio.create_task(box.ask("a", "count 60 0.05")) for _ in range(6)]
        loading = asyncio.create_task(box.ask("b", "count"))
        await box.until_model("a", open=5, queued=1)
        await until(lambda: len(box.workers()) == 2)
        workers = box.workers()
        assert await box.stop() == 0
        assert [len(text.split()) for text in await asyncio.gather(*streams)] == [60] * 6
        with pytest.raises(AnswerError) as caught:
            await loading
        assert caught.value.code == "shutting_down"
        assert not any(is_alive(pid) for pid in workers)


async def test_sigterm_ends_streams_that_do_not_finish(tmp_path: Path) -> None:
    async with appliance(tmp_path, "a", finish_s=1) as box:
        stream = asyncio.create_task(box.ask("a", "count 100000 0.05"))
        await box.until_model("a", open=1)
        assert await box.stop() == 0
        with pytest.raises(AnswerError) as caught:
            await stream
        assert caught.value.code == "shutting_down"


async def test_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    async with appliance(tmp_path, "a", finish_s=1000) as box:
        stream = asyncio.create_task(box.ask("a", "count 100000 0.05"))
        await box.until_model("a", open=1)
        workers = box.workers()
        box.process.send_signal(signal.SIGINT)
        await box.until_logged("daemon.stopping")
        box.process.send_signal(signal.SIGINT)
        assert await box.exit() == 0
        with pytest.raises((AnswerError, httpx.HTTPError)):
            await stream
        assert not any(is_alive(pid) for pid in workers)


async def test_dead_daemon_leaves_no_orphan(tmp_path: Path) -> None:
    async with appliance(tmp_path, "a load = 'startup'", "b--slow-60 load = 'startup'") as box:
        stream = asyncio.create_task(box.ask("a", "count 100000 0.05"))
        await box.until_model("a", open=1)
        await until(lambda: len(box.workers()) == 2)
        workers = box.workers()
        box.process.kill()
        await box.exit()
        await until(lambda: not any(is_alive(pid) for pid in workers))
        with pytest.raises((AnswerError, httpx.HTTPError)):
            await stream


async def test_queue_bound_refuses_with_retry_after(tmp_path: Path) -> None:
    async with appliance(tmp_path, "a parallel = 1; queue = 1") as box:
        await box.ask("a", "count 1")
        held = [asyncio.create_task(box.ask("a", "count 100000 0.05")) for _ in range(2)]
        await box.until_model("a", open=2)
        body = {"model": "a", "messages": [{"role": "user", "content": "count"}]}
        refused = await box.client.post("/v1/chat/completions", json=body)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)


# ── starting ──


async def test_port_in_use_is_said_in_one_line(tmp_path: Path) -> None:
    box = Appliance(tmp_path)
    with socket.socket() as other:
        other.bind(("127.0.0.1", box.port))
        other.listen()
        box.write("a load = 'startup'")
        await box.start()
        assert await box.exit() == 1
    assert f"cannot listen on 127.0.0.1:{box.port}: another program does already" in box.log
    assert f"ss -ltnp 'sport = :{box.port}'" in box.log
    assert "Traceback" not in box.log
    await box.client.aclose()


async def test_bad_configuration_is_listed_and_exits_78(tmp_path: Path) -> None:
    box = Appliance(tmp_path)
    box.save("[models.a]\nggguf = 'file:x'\n[serverr]\n")
    await box.start()
    assert await box.exit() == 78
    lines = box.log.splitlines()
    assert len(lines) >= 2
    assert all(str(box.config) in line for line in lines)
    await box.client.aclose()


async def test_missing_configuration_exits_78(tmp_path: Path) -> None:
    box = Appliance(tmp_path)
    await box.start()
    assert await box.exit() == 78
    assert "does not exist" in box.log
    await box.client.aclose()


async def test_unix_socket_serves_and_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()
    box = Appliance(tmp_path)
    box.write("a", listen=f'"127.0.0.1:{box.port}", "unix:{path}"')
    await box.start()
    await box.until_logged("daemon.serving")
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=transport, base_url="http://edged") as client:
        assert await box.ask("a", "count 2", client) == "0 1 "
    assert path.stat().st_mode & 0o777 == 0o660
    assert await box.stop() == 0
    assert not path.exists()
    await box.client.aclose()


async def test_file_in_the_way_of_a_unix_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    path.write_text("precious")
    box = Appliance(tmp_path)
    box.write("a", listen=f'"unix:{path}"')
    await box.start()
    assert await box.exit() == 1
    assert "a file that is no socket is in the way" in box.log
    assert path.read_text() == "precious"
    await box.client.aclose()


async def test_daemon_at_rest_is_small(tmp_path: Path) -> None:
    async with appliance(tmp_path) as box:
        assert (await box.client.get("/status")).status_code == 200
        assert pss_kb(box.pid) <= 60_000


def pss_kb(pid: int) -> int:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in rollup if line.startswith("Pss:")).split()[1])


# ── HTTP's edges ──


async def talk(box: Appliance, *pieces: bytes) -> bytes:
    """Send raw bytes and return everything until the daemon closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", box.port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return await asyncio.wait_for(reader.read(), 30)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_endless_headers_are_refused(tmp_path: Path) -> None:
    async with appliance(tmp_path) as box:
        headers = b"".join(b"x-%d: %s\r\n" % (n, b"y" * 1000) for n in range(200))
        answer = await talk(box, b"GET /health HTTP/1.1\r\nhost: x\r\n", headers)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
        assert (await box.client.get("/health")).status_code == 200


async def test_nonsense_gets_an_error_in_the_apis_shape(tmp_path: Path) -> None:
    async with appliance(tmp_path) as box:
        answer = await talk(box, b"hello, is this the model?\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"code":"invalid_http"' in answer
