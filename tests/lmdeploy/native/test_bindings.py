"""Level C: the names of the native module, its settings and grammars, and the plan's tables.

Proves that what edged plans and sends exists and is accepted there; nothing of CUDA ran.
"""

import copy
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lmdeploy import TurbomindEngineConfig, turbomind
from lmdeploy.turbomind import TurboMind, _tm, converter
from lmdeploy.turbomind.supported_models import SUPPORTED_ARCHS
from lmdeploy.turbomind.tokenizer_info import TokenizerInfo
from lmdeploy.turbomind.turbomind import TurboMindInstance
from transformers import AutoTokenizer

from edged.plan import turbomind as plan
from edged.plan.kind import UnfitError
from edged.protocol import Launch, LmdeployLaunch
from tests.lmdeploy.contract.played import PlayedLibrary
from tests.lmdeploy.native.computer import Computer
from tests.unit.lmdeploy_models import AWQ, FP8, GPTQ, LLAMA, QWEN

NEWEST = (9, 0)


def test_this_is_the_native_module() -> None:
    assert turbomind.is_available()
    assert Path(_tm.__file__).suffix == ".so"


# ── names ──


@pytest.mark.parametrize("name", ["sleep", "wakeup", "wake_up", "update_params", "update_weights"])
def test_native_engine_cannot(name: str) -> None:
    """Why edged ends the process instead; a release that brings one of them back is noticed."""
    assert not hasattr(_tm.TurboMind, name)


def test_played_parts_have_the_names_of_the_native_ones() -> None:
    for name in ("forward", "cancel", "set_grammar"):
        assert hasattr(_tm.ModelRequest, name)
    for name in ("create", "create_request", "create_engine", "process_weight"):
        assert hasattr(_tm.TurboMind, name)
    assert hasattr(_tm.TurboMind, "get_schedule_metrics")
    assert hasattr(_tm.AtomicRequestState, "consume")
    assert {"status", "seq_len"} <= set(dir(_tm.RequestState))
    assert {"cached_tokens", "enqueue_time"} <= set(dir(_tm.RequestMetrics))
    figures = {"active_seqs", "waiting_seqs", "cache_usage", "scheduler_tick"}
    assert figures <= set(dir(_tm.ScheduleMetrics))
    assert inspect.isasyncgenfunction(TurboMindInstance.async_stream_infer)


class _Seen(Exception):
    pass


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would ask a GPU says that it has every kernel."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    every = {"float16", "bfloat16"}
    monkeypatch.setattr(converter, "_get_executable_dtypes", lambda *_: set(every))


@pytest.mark.parametrize("devices", [(0,), (0, 1)])
@pytest.mark.usefixtures("no_kernels")
def test_settings_reach_the_native_side(
    folder: Path, monkeypatch: pytest.MonkeyPatch, devices: tuple[int, ...]
) -> None:
    settings = LmdeployLaunch("/python", devices, 1, 1, dtype="bfloat16", prefixes=False)
    launch = Launch("m", "lmdeploy", str(folder), "1", 512, 4, 2048, lmdeploy=settings)
    computer = Computer()
    config = PlayedLibrary(launch, computer).engine.backend_config
    computer.close()
    seen: list[Any] = []

    def create(model_dir: str, engine_config: Any) -> Any:  # noqa: ARG001 - its names
        seen.append(engine_config)
        raise _Seen

    monkeypatch.setattr(_tm.TurboMind, "create", create)
    with pytest.raises(_Seen):
        TurboMind.from_pretrained(str(folder), engine_config=copy.deepcopy(config))
    native = seen[0]
    assert native.data_type == _tm.DataType.TYPE_BF16
    assert (native.max_batch_size, native.session_len) == (4, config.session_len)
    assert 0 < native.cache_max_block_count < 1  # anything else ends the process
    assert native.cache_max_block_count == pytest.approx(config.cache_max_entry_count)
    assert (native.enable_prefix_caching, native.quant_policy) == (False, 0)
    assert native.enable_metrics
    assert native.attn_tp_size == native.mlp_tp_size == len(devices)
    assert list(native.devices) == list(range(len(devices)))  # CUDA_VISIBLE_DEVICES chose them


def test_without_a_gpu_no_engine_is_built(folder: Path) -> None:
    with pytest.raises((AssertionError, RuntimeError, ValueError), match=r"got 0|GPU|CUDA"):
        TurboMind.from_pretrained(str(folder))


# ── grammars ──


@pytest.fixture(scope="module")
def compiler(folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return _tm.GrammarCompiler(TokenizerInfo.from_huggingface(tokenizer, vocab_size=320))


def test_good_grammars_compile(compiler: Any) -> None:
    schema = json.dumps({"type": "object", "properties": {"a": {"enum": ["x", 1]}}})
    assert isinstance(compiler.compile_json_schema(schema), _tm.CompiledGrammar)
    assert isinstance(compiler.compile_regex("(a|b)+c?"), _tm.CompiledGrammar)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json_schema", '{"type": "strange"}'),
        ("json_schema", "{"),
        ("regex", "(["),
        ("structural_tag", '{"type": "structural_tag", "format": {"type": "strange"}}'),
    ],
)
def test_bad_grammars_raise_what_is_not_taken_for_a_missing_one(
    compiler: Any, kind: str, text: str
) -> None:
    """A ValueError or KeyError would let `turbomind.py` go on without the grammar."""
    with pytest.raises(RuntimeError):
        getattr(compiler, f"compile_{kind}")(text)


# ── tables ──


def test_group_sizes_are_the_converters() -> None:
    theirs = dict(converter._SUPPORTED_GROUP_SIZES)
    theirs.pop("mxfp4")
    assert {name: set(sizes) for name, sizes in plan._GROUPS.items()} == theirs


def test_architectures_are_the_wheels() -> None:
    assert set(plan.FAMILIES) == set(SUPPORTED_ARCHS)


PACKED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {
            "format": "pack-quantized",
            "weights": {"num_bits": 4, "type": "int", "group_size": 128},
        }
    },
}


def packed(**weights: Any) -> dict[str, Any]:
    group = PACKED["config_groups"]["group_0"]
    return PACKED | {"config_groups": {"group_0": group | {"weights": group["weights"] | weights}}}


def without(config: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != key}


OUTSIDE = PACKED | {"format": "pack-quantized"}
OUTSIDE["config_groups"] = {"group_0": without(PACKED["config_groups"]["group_0"], "format")}

#: quantization_config, whether edged plans TurboMind for it, whether the converter takes it. What
#: the converter takes and edged does not fails later: when weights are read, or by wrong answers.
FORMS: dict[str, tuple[dict[str, Any] | None, bool, bool]] = {
    "none": (None, True, True),
    "awq": (AWQ, True, True),
    "awq without a version": (without(AWQ, "version"), False, False),
    "awq in capitals": (AWQ | {"version": "GEMM"}, False, False),
    "awq gemv": (AWQ | {"version": "gemv"}, False, False),
    "awq 64": (AWQ | {"group_size": 64}, False, False),
    "awq whole": (AWQ | {"group_size": -1}, False, False),
    "awq no group": (AWQ | {"group_size": None}, False, False),
    "awq group unsaid": (without(AWQ, "group_size"), True, True),
    "awq 8 bits": (AWQ | {"bits": 8}, False, True),
    "gptq": (GPTQ, True, True),
    "gptq act-order": (GPTQ | {"desc_act": True}, False, False),
    "gptq asymmetric": (GPTQ | {"sym": False}, False, False),
    "gptq 32": (GPTQ | {"group_size": 32}, False, False),
    "gptq whole": (GPTQ | {"group_size": -1}, False, False),
    "gptq 8 bits": (GPTQ | {"bits": 8}, False, True),
    "fp8": (FP8, True, True),
    "fp8 of rows": (FP8 | {"weight_block_size": None}, False, True),
    "mxfp4": ({"quant_method": "mxfp4"}, True, True),
    "packed 128": (packed(), True, True),
    "packed 32": (packed(group_size=32), True, True),
    "packed 64": (packed(group_size=64), False, False),
    "packed whole": (packed(group_size=None), False, True),
    "packed 8 bits": (packed(num_bits=8), False, False),
    "packed floats": (packed(type="float"), False, False),
    "packed, format outside": (OUTSIDE, False, False),
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, False, False),
    "smooth_quant": ({"quant_method": "smooth_quant"}, False, False),
}


def is_taken(call: Any) -> bool:
    try:
        call()
    except (UnfitError, AssertionError, ValueError, KeyError, TypeError):
        return False
    return True


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.usefixtures("no_kernels")
def test_what_the_plan_lets_through_the_converter_does(tmp_path: Path, name: str) -> None:
    said, is_planned, is_read = FORMS[name]
    assert is_read or not is_planned
    config = QWEN | ({"quantization_config": said} if said else {})
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert is_taken(lambda: plan.check(config, capability=NEWEST, kv_bits=0)) == is_planned
    wanted = TurbomindEngineConfig(dtype="float16", devices=[0])
    assert is_taken(lambda: converter.get_tm_config(str(tmp_path), wanted)) == is_read
    assert not is_planned or wanted.model_format == (said["quant_method"] if said else None)


@pytest.mark.usefixtures("no_kernels")
def test_model_of_another_family_too(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    plan.check(LLAMA, capability=NEWEST, kv_bits=0)
    wanted = TurbomindEngineConfig(dtype="float16", devices=[0])
    converter.get_tm_config(str(tmp_path), wanted)
    assert wanted.session_len == LLAMA["max_position_embeddings"]
