"""All that edged asks of LMDeploy and torch: the engine's life, its requests, its figures.

Nothing else imports them. What is used is listed in tests/lmdeploy/contract/test_signatures.py,
which holds it against the installed release. Left alone on purpose: sleep and wake-up (they do not
exist in TurboMind's native module and make a dead engine look healthy), `stop_words` (one token
each, and others' tokens too), session ids of clients, the metrics' singleton.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import sys
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from edged.errors import (
    ContextLengthExceeded,
    EdgedError,
    InternalError,
    InvalidRequest,
    ServiceUnavailable,
    UnsupportedParameter,
)
from edged.protocol import Launch, LmdeployLaunch
from edged.worker.engine import BadModelError, EngineMissingError

_SESSION_SPARE = 2  # LMDeploy counts one too many at the end of a context, and may die of it
_ROOM_WAIT_S = 60.0  # others' memory comes back a while after they ended
_MOST_SHARE = 0.95
_GIB = 1 << 30


class Output(NamedTuple):
    """What the engine says of one request at a time."""

    tokens: list[int]
    logprobs: list[dict[int, float]] | None
    cached: int
    finish: str | None  # "stop", "length" or "abort" with the last one


class Figures(NamedTuple):
    """The engine's own counters."""

    tick: int  # scheduling rounds
    running: int
    waiting: int
    cache_usage: float  # 0 to 1


class Request(Protocol):
    """One request of the engine; `outputs` may be iterated once."""

    n_prompt: int

    def outputs(self) -> AsyncGenerator[Output, None]:
        """Yield what the engine says; closing it aborts."""
        ...

    def forget(self) -> None:
        """Drop the session, wherever the request has got to."""
        ...


class Library:
    """One loaded model. Made in any thread; everything else belongs to the loop."""

    def __init__(self, launch: Launch) -> None:
        """Load it. Raises BadModelError, EngineMissingError, MemoryError, RuntimeError."""
        settings = launch.lmdeploy
        assert settings is not None
        _set_environment(settings)
        try:
            import lmdeploy  # noqa: PLC0415 - only once the environment is set
        except ImportError as error:
            raise EngineMissingError(f"LMDeploy cannot be imported: {error}") from error
        _quieten()
        self._lmdeploy = lmdeploy
        self._settings = settings
        self.build = f"lmdeploy {lmdeploy.__version__} {settings.backend}"
        self._engine = self._open(launch, settings)

    # ── the engine's life ──

    def _open(self, launch: Launch, settings: LmdeployLaunch) -> Any:
        from lmdeploy.archs import get_task  # noqa: PLC0415

        if settings.backend == "turbomind":
            _check_native()
        config = self._config(launch, settings, share=self._share(settings))
        path = str(Path(launch.path).absolute())  # a name of the hub would be fetched
        try:
            _, make = get_task(settings.backend, path, False, backend_config=config)
            return make(path, backend=settings.backend, backend_config=config)
        except AssertionError as error:
            raise BadModelError(f"LMDeploy cannot load it: {error or 'an assertion'}") from error
        except (ValueError, KeyError, TypeError, NotImplementedError) as error:
            raise BadModelError(f"LMDeploy cannot load it: {error}") from error

    def _share(self, settings: LmdeployLaunch) -> float:
        """Return the share of what is free beside the weights that makes up the KV cache.

        Waits while another worker leaves; raises MemoryError if the room does not come.
        """
        needed = settings.weights_bytes + settings.cache_bytes
        end = time.monotonic() + _ROOM_WAIT_S
        while (free := min(self._free(n) for n in range(len(settings.devices)))) < needed:
            if time.monotonic() > end:
                raise MemoryError(
                    f"GPU {' and '.join(map(str, settings.devices))}: {free / _GIB:.1f} GiB are "
                    f"free, {needed / _GIB:.1f} GiB are needed; another program uses it: "
                    "`nvidia-smi` says which"
                )
            time.sleep(0.5)
        return min(_MOST_SHARE, settings.cache_bytes / max(1, free - settings.weights_bytes))

    @staticmethod
    def _free(device: int) -> int:
        import torch  # noqa: PLC0415

        return int(torch.cuda.mem_get_info(device)[0])

    def _config(self, launch: Launch, settings: LmdeployLaunch, share: float) -> Any:
        is_turbomind = settings.backend == "turbomind"
        kind = "TurbomindEngineConfig" if is_turbomind else "PytorchEngineConfig"
        made = getattr(self._lmdeploy, kind)
        wanted: dict[str, Any] = {
            "dtype": settings.dtype,
            "tp": len(settings.devices),
            "session_len": launch.context + _SESSION_SPARE,
            "max_batch_size": launch.parallel,
            "cache_max_entry_count": share,
            "enable_prefix_caching": settings.prefixes,
            "quant_policy": settings.kv_bits,
        }
        if is_turbomind:
            wanted["language_model_only"] = not settings.images
        unknown = set(wanted) - {field.name for field in dataclasses.fields(made)}
        if unknown:  # it would drop them without a word
            raise EngineMissingError(f"this LMDeploy has no setting {', '.join(sorted(unknown))}")
        return made(**wanted)

    def start(self) -> None:
        """Bind the engine to the running loop."""
        self._engine.start_loop(asyncio.get_running_loop(), use_async_api=True)

    def close(self) -> None:
        """Let go of the model; memory comes back with the end of the process only."""
        self._engine.close()

    @property
    def architecture(self) -> str:
        """The class that the model was saved from."""
        return str(self._engine.arch)

    # ── requests ──

    async def request(
        self,
        config: dict[str, Any],
        *,
        tokens: list[int] | None,
        messages: list[dict[str, Any]] | None = None,
        tools: list[dict[str, Any]] | None = None,
        template_kwargs: dict[str, Any] | None = None,
    ) -> Request:
        """Check a request and return it; nothing runs before its outputs are asked for.

        Raises EdgedError.
        """
        engine = self._engine
        session = engine.session_mgr.get()
        session.epoch = engine.epoch
        try:
            prepared = await engine.preprocess(
                messages,
                session,
                gen_config=self._lmdeploy.GenerationConfig(**config),
                tools=tools,
                input_ids=tokens,
                chat_template_kwargs=template_kwargs,
            )
        except BaseException as error:
            engine.session_mgr.remove(session)
            if isinstance(error, AssertionError):
                raise InvalidRequest(f"the engine refuses these values: {error}") from error
            raise _translated(error) from None
        return _Request(engine, session, prepared)

    async def figures(self) -> Figures:
        """Return the engine's counters."""
        found = await self._engine.get_schedule_metrics()
        return Figures(
            int(found.scheduler_tick),
            int(found.active_seqs),
            int(found.waiting_seqs),
            float(found.cache_usage),
        )


class _Request:
    def __init__(self, engine: Any, session: Any, prepared: Any) -> None:
        self.n_prompt: int = prepared.input_token_len
        self._engine, self._session, self._prepared = engine, session, prepared

    async def outputs(self) -> AsyncGenerator[Output, None]:
        wanted = self._prepared.gen_config.response_format
        found = self._engine.generate(self._prepared, stream_response=True)
        try:
            async for out in found:
                self._check_format(wanted)
                yield Output(
                    list(out.token_ids or ()), out.logprobs, out.cached_tokens, out.finish_reason
                )
        except Exception as error:
            ours = _translated(error)
            if ours is error:
                raise
            raise ours from error
        finally:
            await found.aclose()
            self.forget()

    def _check_format(self, wanted: Any) -> None:
        # it goes on without a grammar that its compiler refuses, and strikes it out of the request
        if wanted is not None and self._prepared.gen_config.response_format is None:
            raise InternalError("the engine does not hold its answer to the wanted format")

    def forget(self) -> None:
        self._engine.session_mgr.remove(self._session)


_ERRORS: dict[str, Callable[[str], EdgedError]] = {
    "invalid_request": InvalidRequest,
    "preprocess_failed": InvalidRequest,
    "unsupported_feature": UnsupportedParameter,
    "context_length_exceeded": ContextLengthExceeded,
    "engine_unavailable": ServiceUnavailable,
}


def _translated(error: BaseException) -> BaseException:
    """Return our error for one of LMDeploy's; what is no refusal comes back as it is."""
    code = getattr(getattr(error, "code", None), "value", None)
    if not isinstance(code, str) or not isinstance(error, RuntimeError):
        return error
    made = _ERRORS.get(code)
    if made is None:
        return InternalError(f"the engine failed: {error}")
    return made(f"the engine refuses this request: {error}")


# ── before the engine ──


def _set_environment(settings: LmdeployLaunch) -> None:
    """Let CUDA see the planned GPUs only, and nothing leave the box."""
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, settings.devices))
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ.setdefault("TM_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _quieten() -> None:
    """Let LMDeploy log what is wrong only, to stderr: it would log prompts, to stdout."""
    import logging  # noqa: PLC0415 - the standard library's, for a foreign logger

    logger = logging.getLogger("lmdeploy")
    logger.setLevel(logging.WARNING)
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setStream(sys.stderr)


def _check_native() -> None:
    from lmdeploy import turbomind  # noqa: PLC0415

    if not turbomind.is_available():
        raise EngineMissingError(
            f"TurboMind's native module does not load: {turbomind._import_error}; "  # noqa: SLF001 - there is no other place
            "run `edged setup-cuda` again"
        )
