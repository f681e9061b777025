"""TurboMind's native part, played: what it would say is set by the test, nothing is computed.

It keeps the manners of `turbomind.py`: one instance a request at a time, CANCEL as the last word
after `async_cancel`, and an end that waits for the native side however the generator is closed.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from lmdeploy.messages import EngineOutput, RequestMetrics, ResponseType, ScheduleMetrics
from lmdeploy.serve.core import AsyncEngine

from edged.protocol import Launch, LmdeployLaunch
from edged.worker.lmdeploy import library


class Native:
    """One engine. `answer` is said token by token; then `status`."""

    def __init__(self) -> None:
        self.answer: Sequence[int] = ()
        self.pieces: Iterator[int] | None = None  # tokens of each step; None: one
        self.status = ResponseType.FINISH
        self.logprobs: list[dict[int, float]] | None = None
        self.cached = 0
        self.gate: asyncio.Event | None = None  # waited for before each word
        self.is_deaf = False  # does not end when it is cancelled
        self.cancelled = 0
        self.configs: list[Any] = []
        self.prompts: list[list[int]] = []
        self.running = 0
        self.tick = 0
        self.engine_config: Any = None
        self.tokenizer: Any = None

    def opened(self, folder: str, config: Any) -> "Native":  # noqa: ARG002 - others need it
        """Return the engine for a folder, as `AsyncEngine._build_turbomind` does."""
        self.engine_config = config
        return self

    def answer_to(self, prompt: list[int], config: Any) -> list[int]:  # noqa: ARG002 - others'
        """Return the tokens of an answer."""
        return list(self.answer)

    def likelihoods_of(self, answer: list[int]) -> list[dict[int, float]] | None:  # noqa: ARG002
        """Return a row for each of its tokens."""
        return self.logprobs

    def create_instance(self, **_: Any) -> "Instance":
        return Instance(self)

    def get_schedule_metrics(self) -> ScheduleMetrics:
        return ScheduleMetrics(active_seqs=self.running, cache_usage=0.25, scheduler_tick=self.tick)

    def close(self) -> None:
        pass


class Instance:
    def __init__(self, native: Native) -> None:
        self._native = native
        self._cancelled = asyncio.Event()

    async def async_cancel(self, session_id: int | None = None) -> None:  # noqa: ARG002
        self._native.cancelled += 1
        self._cancelled.set()

    async def async_end(self, session_id: int) -> None:
        pass

    async def async_stream_infer(
        self,
        session_id: int,  # noqa: ARG002
        input_ids: list[int],
        gen_config: Any,
        **_: Any,
    ) -> AsyncGenerator[EngineOutput, None]:
        native = self._native
        native.configs.append(gen_config)
        native.prompts.append(list(input_ids))
        self._cancelled.clear()
        native.running += 1
        over = False
        try:
            answer, said = native.answer_to(list(input_ids), gen_config), 0
            likelihoods = native.likelihoods_of(answer) if gen_config.logprobs else None
            while True:
                native.tick += 1
                if native.gate is not None:
                    await self._wait(native.gate)
                else:
                    await asyncio.sleep(0)
                if self._cancelled.is_set():
                    over = not native.is_deaf
                    yield self._word(ResponseType.CANCEL, [])
                    return
                step = next(native.pieces, 1) if native.pieces else 1
                tokens = answer[said : said + step]
                rows = likelihoods[said : said + step] if likelihoods else None
                said += step
                over = said >= min(len(answer), gen_config.max_new_tokens)
                tokens = tokens[: gen_config.max_new_tokens - (said - step)]
                ends = [] if gen_config.ignore_eos else gen_config.stop_token_ids or []
                if tokens and tokens[-1] in ends:
                    over = True
                status = native.status if over else ResponseType.SUCCESS
                yield self._word(status, tokens, rows)
                if over:
                    return
        except (GeneratorExit, asyncio.CancelledError):
            native.cancelled += 1
            over = not native.is_deaf
        finally:
            if not over:  # as the real one waits for a native side that never signals
                await asyncio.Event().wait()
            native.running -= 1

    async def _wait(self, gate: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(each.wait()) for each in (gate, self._cancelled)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    def _word(
        self, status: ResponseType, tokens: list[int], rows: list[dict[int, float]] | None = None
    ) -> EngineOutput:
        metrics = RequestMetrics(cached_tokens=self._native.cached)
        return EngineOutput(status, tokens, logprobs=rows, req_metrics=metrics)


class PlayedLibrary(library.Library):
    """The adapter as it is, on the real AsyncEngine; only what needs CUDA is left out."""

    def __init__(self, launch: Launch, native: Any) -> None:
        """`native`: a `Native`, or what else has `opened`."""
        self._native = native
        super().__init__(launch)

    def _open(self, launch: Launch, settings: LmdeployLaunch) -> Any:
        def build(_engine: Any, model_path: str, backend_config: Any, **_: Any) -> Any:
            return self._native.opened(model_path, backend_config)

        config = self._config(launch, settings, share=0.5)
        real = AsyncEngine._build_turbomind
        AsyncEngine._build_turbomind = build
        try:
            self.engine = AsyncEngine(launch.path, backend="turbomind", backend_config=config)
        finally:
            AsyncEngine._build_turbomind = real
        return self.engine

    @property
    def pool(self) -> SimpleNamespace:
        """What the engine still holds: sessions, and handles that are out."""
        manager = self.engine.session_mgr
        return SimpleNamespace(
            sessions=len(manager.sessions), out=manager.request_handle_pool.num_dispatched
        )
