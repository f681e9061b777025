"""A worker that speaks the protocol and does what it is told, good or bad.

How it loads stands in the file's name behind `--`: `m--slow-0.5`, `m--bad`, `m--dies`,
`m--no-engine`, `m--dies-until-FILE` (until a file of that name lies beside it), `m--stubborn`
(ignores SIGTERM), `m--unfit` (every request fails), `m--cursed` (dies of its second request),
`m--fat-MB` (takes so much), `m--deaf` (never reads what comes after Load), `m--silent` (loads for
ever without a word). How it answers stands in the prompt; see `answer`.
"""

from __future__ import annotations

import asyncio
import faulthandler
import hashlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from edged.framing import Frames
from edged.protocol import (
    EXIT_BAD_MODEL,
    EXIT_NO_ENGINE,
    Abort,
    Delta,
    Event,
    Failed,
    Finish,
    Generate,
    Launch,
    Load,
    LoadFailed,
    Loading,
    Messages,
    Ready,
    Started,
    Stats,
    Step,
    Text,
    ToDaemon,
    ToWorker,
    Usage,
)

_ANSWER_BYTES = 1 << 20


class FakeWorker:
    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.frames = Frames(ToWorker)
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.progress = 0
        self.tokens = 0
        self.ballast: list[bytes] = []
        self.deaf = False
        self.how = ""
        self.asked = 0
        self.halted = False  # no step any more, for anybody; the loop lives

    def send(self, message: ToDaemon) -> None:
        self.writer.write(self.frames.encode(message))

    def event(self, event: Event) -> None:
        self.progress += 1
        self.send(Step([event]))

    # ── load ──

    async def load(self, launch: Launch) -> None:  # noqa: C901
        how = self.how = Path(launch.path).stem.partition("--")[2]
        began = time.monotonic()
        self.send(Loading(0.0))
        if how == "bad":
            self.refuse("not a model file: it begins with 'hello'", EXIT_BAD_MODEL)
        elif how == "no-engine":
            self.refuse("the fake engine is not installed", EXIT_NO_ENGINE)
        elif how == "dies":
            print("cannot allocate a thing", file=sys.stderr, flush=True)
            os._exit(70)
        elif how.startswith("dies-until-"):
            if not Path(launch.path).with_name(how.removeprefix("dies-until-")).exists():
                os.kill(os.getpid(), signal.SIGSEGV)
        elif how.startswith("slow-"):
            steps = 10
            for n in range(steps):
                await asyncio.sleep(float(how.removeprefix("slow-")) / steps)
                self.send(Loading((n + 1) / steps))
        elif how.startswith("fat-"):
            self.ballast.append(os.urandom(1 << 20) * int(how.removeprefix("fat-")))
        elif how == "silent":
            await asyncio.Event().wait()
        elif how == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.send(
            Ready(
                build="fake 1",
                context=launch.context,
                n_vocab=100,
                architecture="fake",
                chat_template=True,
                threads=1,
                load_s=time.monotonic() - began,
            )
        )
        self.deaf = how == "deaf"

    def refuse(self, message: str, code: int) -> None:
        self.send(LoadFailed(message))
        self.leave(code)

    def leave(self, code: int) -> None:
        """Exit at once, with everything that was said on its way."""
        sock = self.writer.get_extra_info("socket")
        os.set_blocking(sock.fileno(), True)
        self.writer.transport.abort()
        os._exit(code)

    def stats(self) -> None:
        self.send(
            Stats(
                progress=self.progress,
                running=len(self.tasks),
                waiting=0,
                cells_used=0,
                cells=1,
                prompt_tokens=0,
                cached_tokens=0,
                completion_tokens=self.tokens,
                step_ms=1.0,
            )
        )

    # ── answers ──

    def start(self, request: Generate) -> None:
        task = asyncio.create_task(self.run(request))
        self.tasks[request.id] = task
        task.add_done_callback(lambda _: self.tasks.pop(request.id, None))

    async def run(self, request: Generate) -> None:
        n_tokens = 0
        self.asked += 1
        if self.halted:
            await asyncio.Event().wait()
        if self.how == "unfit":
            self.event(Failed(request.id, "internal_error", "no logits came of it"))
            return
        if self.how == "cursed" and self.asked > 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        self.event(Started(request.id, prompt_tokens=1))
        async for piece in self.answer(request):
            self.event(Delta(request.id, content=piece))
            n_tokens += 1
            self.tokens += 1
            if self.halted:
                await asyncio.Event().wait()
            await self.writer.drain()
        usage = Usage(prompt_tokens=1, completion_tokens=n_tokens)
        self.event(Finish(request.id, "stop", usage=usage))

    async def answer(self, request: Generate) -> AsyncIterator[str]:  # noqa: C901, PLR0912, PLR0915
        """Yield the pieces that the prompt asks for; the first word is the command."""
        command, *rest = text_of(request).split() or ["count"]
        match command:
            case "count":  # count N DELAY_S
                for n in range(int(rest[0]) if rest else 3):
                    await asyncio.sleep(float(rest[1]) if len(rest) > 1 else 0)
                    yield f"{n} "
            case "echo":
                yield " ".join(rest)
            case "others":  # how many generations run beside this one
                yield str(len(self.tasks) - 1)
            case "pid":
                yield str(os.getpid())
            case "sampling":
                yield repr(request.sampling.temperature)
            case "flood":  # pieces without end and without a breath
                while True:
                    yield "x" * 1000
                    await asyncio.sleep(0)
            case "trickle":  # trickle SIZE DELAY_S: pieces without end
                while True:
                    yield "x" * int(rest[0])
                    await asyncio.sleep(float(rest[1]))
            case "stall":  # alive, but no step any more
                await asyncio.Event().wait()
            case "halt":  # as stall, for everybody
                self.halted = True
                await asyncio.Event().wait()
            case "compute":  # compute S: no step for so long, but work beside the loop
                await asyncio.to_thread(compute, time.monotonic() + float(rest[0]))
                yield "computed"
            case "freeze":  # not even alive
                while True:
                    time.sleep(1)  # noqa: ASYNC251 - on purpose
            case "die":  # die SIGNAL
                yield "last "
                await self.writer.drain()
                print("GGML_ASSERT(dead) failed", file=sys.stderr, flush=True)
                os.kill(os.getpid(), getattr(signal, rest[0]))
            case "exit":
                os._exit(int(rest[0]))
            case "garbage":
                self.writer.write(b"\x04\x00\x00\x00\xc1\xc1\xc1\xc1")
                await asyncio.Event().wait()
            case "giant":
                self.writer.write(b"\xff\xff\xff\x7f")
                await asyncio.Event().wait()
            case "hangup":  # close the socket and stay
                self.writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
                time.sleep(3600)  # noqa: ASYNC251 - on purpose
            case "stderr":  # stderr LINES
                for n in range(int(rest[0])):
                    print(f"line {n}", file=sys.stderr)
                yield "written"
            case "balloon":  # balloon MB [HOLD_S]
                self.ballast.append(os.urandom(1 << 20) * int(rest[0]))
                yield "fat"
                await asyncio.sleep(float(rest[1]) if len(rest) > 1 else 0)
            case _:
                yield f"no such command: {command}"


def compute(end: float) -> None:
    while time.monotonic() < end:
        hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000)  # without the interpreter


def text_of(request: Generate) -> str:
    if isinstance(request.prompt, Text):
        return request.prompt.text
    if isinstance(request.prompt, Messages):
        return str(request.prompt.messages[-1]["content"])
    return ""


async def serve(sock: socket.socket) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    writer.transport.set_write_buffer_limits(high=_ANSWER_BYTES)
    worker = FakeWorker(writer)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.leave, 0)
    loading: asyncio.Task[None] | None = None
    while data := await reader.read(1 << 16):
        if worker.deaf:
            await asyncio.Event().wait()
        for message in worker.frames.feed(data):
            match message:
                case Load(launch):
                    loading = asyncio.create_task(load(worker, launch))
                case Generate():
                    worker.start(message)
                case Abort(number):
                    if number in worker.tasks:
                        worker.tasks[number].cancel()
    del loading
    os._exit(0)  # the daemon is gone


async def load(worker: FakeWorker, launch: Launch) -> None:
    await worker.load(launch)
    while True:
        worker.progress += worker.deaf
        worker.stats()
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(serve(socket.socket(fileno=int(sys.argv[1]))))
