"""Level A: what edged calls of LMDeploy exists with the names it uses. Proves no behaviour."""

import asyncio
import dataclasses
import inspect
from typing import Any

import lmdeploy
import pytest
from lmdeploy import GenerationConfig, PytorchEngineConfig, TurbomindEngineConfig, archs, turbomind
from lmdeploy.messages import EngineOutput, RequestMetrics, ResponseType, ScheduleMetrics
from lmdeploy.serve.core import AsyncEngine
from lmdeploy.serve.core.async_engine import GenOut
from lmdeploy.serve.core.exceptions import ErrorCode, RequestError
from lmdeploy.serve.managers.session_manager import Session, SessionManager

from edged.worker.lmdeploy import library


def parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


def fields(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_version() -> None:
    assert lmdeploy.__version__.split(".")[:2] == ["0", "18"]


@pytest.mark.parametrize("kind", [TurbomindEngineConfig, PytorchEngineConfig])
def test_settings(kind: Any) -> None:
    used = {"dtype", "tp", "session_len", "max_batch_size", "cache_max_entry_count"}
    assert used | {"enable_prefix_caching", "quant_policy"} <= fields(kind)
    assert "enable_metrics" in fields(kind)  # without it nothing tells of cached tokens
    assert next(f for f in dataclasses.fields(kind) if f.name == "enable_metrics").default is True


def test_text_models_leave_their_images_out() -> None:
    assert "language_model_only" in fields(TurbomindEngineConfig)


def test_unknown_settings_are_dropped_in_silence() -> None:
    """Why the adapter compares names itself; if this fails, it need not any more."""
    TurbomindEngineConfig(adapters={})  # type: ignore[call-arg]


def test_engine() -> None:
    made = parameters(AsyncEngine.__init__)
    assert {"model_path", "backend", "backend_config"} <= made
    asked = parameters(AsyncEngine.preprocess)
    assert {"messages", "session_id", "gen_config", "tools", "input_ids"} <= asked
    assert "chat_template_kwargs" in asked
    assert parameters(AsyncEngine.generate) == {"self", "request", "stream_response"}
    assert inspect.isasyncgenfunction(AsyncEngine.generate)
    assert asyncio.iscoroutinefunction(AsyncEngine.preprocess)
    assert asyncio.iscoroutinefunction(AsyncEngine.get_schedule_metrics)
    assert {"loop", "use_async_api"} <= parameters(AsyncEngine.start_loop)
    assert "_build_turbomind" in vars(AsyncEngine)
    assert {"backend", "model_path", "backend_config"} <= parameters(archs.get_task)


def test_words() -> None:
    assert {"token_ids", "logprobs", "cached_tokens", "finish_reason"} <= fields(GenOut)
    counters = {"scheduler_tick", "active_seqs", "waiting_seqs", "cache_usage"}
    assert counters <= fields(ScheduleMetrics)
    assert {"status", "token_ids", "logprobs", "req_metrics"} <= fields(EngineOutput)
    assert "cached_tokens" in fields(RequestMetrics)
    assert {"SUCCESS", "FINISH", "CANCEL", "OUT_OF_MEMORY"} <= set(ResponseType.__members__)


def test_sessions() -> None:
    manager = SessionManager()
    session = manager.get()
    assert isinstance(session, Session)
    assert session.epoch is None
    manager.remove(session)
    manager.remove(session)  # twice is no error
    assert not manager.sessions


def test_errors_that_are_translated_exist() -> None:
    assert set(library._ERRORS) <= {code.value for code in ErrorCode}
    error = RequestError(ErrorCode.INVALID_REQUEST, "no")
    assert isinstance(error, RuntimeError)
    assert isinstance(library._translated(error), library.InvalidRequest)
    unavailable = library._translated(RequestError(ErrorCode.ENGINE_UNAVAILABLE))
    assert isinstance(unavailable, library.ServiceUnavailable)


def test_native_module_is_asked_without_raising() -> None:
    assert turbomind.is_available() is False  # there is no CUDA here
    assert isinstance(turbomind._import_error, ImportError)


def test_generation_config_takes_what_is_sent() -> None:
    used = {
        "max_new_tokens", "min_new_tokens", "ignore_eos", "stop_token_ids", "skip_special_tokens",
        "repetition_penalty", "do_sample", "logprobs", "temperature", "top_p", "top_k", "min_p",
        "random_seed", "response_format",
    }  # fmt: skip
    assert used <= fields(GenerationConfig)
    assert GenerationConfig().do_sample is False  # greedy is its default, and must be said


@pytest.mark.parametrize("name", ["sleep", "wakeup", "wake_up"])
def test_adapter_never_sleeps(name: str) -> None:
    assert f"engine.{name}(" not in inspect.getsource(library)
