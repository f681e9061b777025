"""Which boxes run which models with LMDeploy, and the reasons for the others."""

import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from edged import hardware, plan
from edged.config import Config, LmdeployOptions, Model, Source
from edged.hardware import Engines, Hardware, detect, nvml
from edged.plan import ModelPlan, known_bad
from edged.protocol import LmdeployLaunch, Sampling
from tests.nvml import BOXES, GIB
from tests.unit.gguf_bytes import gguf
from tests.unit.lmdeploy_models import AWQ, LLAMA, MODELS, folder_of, model
from tests.unit.test_hardware import box as proc

PYTHON = "/var/lib/edged/cuda-py3.11/bin/python"
INSTALLED = Engines(llamacpp="0.3.36", lmdeploy="0.18.0", lmdeploy_python=PYTHON)


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(name: str, engines: Engines = INSTALLED) -> Hardware:
        monkeypatch.setattr(nvml, "load", lambda: BOXES[name])
        found = detect(root=proc(tmp_path / "proc"))
        memory = hardware.Memory(32 * GIB, 32 * GIB, 32 * GIB)
        return replace(
            found, engines=engines, memory=memory, cpu=replace(found.cpu, architecture="x86_64")
        )

    return make


def planned(
    folder: Path, hardware: Hardware, names: tuple[str, ...] = ("a",), **fields: Any
) -> dict[str, ModelPlan]:
    """Return the plans of models, one folder each."""
    models = {
        name: Model(name=name, **({"safetensors": Source("file", name)} | fields)) for name in names
    }
    config = Config(path=str(folder / "models.toml"), models=models)
    return dict(plan.make(config, hardware).models)


def settings(found: ModelPlan) -> LmdeployLaunch:
    assert found.launch is not None, found.refusal
    assert found.launch.lmdeploy is not None
    return found.launch.lmdeploy


#: Box and model → the GPUs that it gets, or a part of the reason why it gets none.
NO_ROOM = "lower context or parallel"
TABLE: dict[tuple[str, str], tuple[int, ...] | str] = {
    ("no driver", "awq"): "there is no NVIDIA GPU that can be used",
    ("GTX 1080", "awq"): "GTX 1080 has 6.1",
    ("MIG", "awq"): "there is no NVIDIA GPU that can be used",
    ("old driver", "awq"): "the NVIDIA driver is 470.223.02, it needs 525 or newer",
    ("T4", "awq"): (0,),
    ("T4", "gptq"): (0,),
    ("T4", "fp16"): NO_ROOM,
    ("T4", "fp8"): "FP8 needs compute capability 8.0",
    ("3060", "awq"): (0,),
    ("3060", "gptq"): (0,),
    ("3060", "fp16"): NO_ROOM,
    ("3060", "vl"): NO_ROOM,
    ("2 x 3090", "awq"): (0,),
    ("2 x 3090", "fp16"): (0,),
    ("2 x 3090", "fp8"): (0,),
    ("2 x 3090", "vl"): (0,),
    ("2 x 3090", "moe"): NO_ROOM,
    ("4090", "fp16"): (0,),
    ("4090", "fp8"): (0,),
    ("4090", "moe"): NO_ROOM,
    ("H200", "fp16"): (0,),
    ("H200", "awq"): (0,),
    ("H200", "fp8"): (0,),
    ("H200", "vl"): (0,),
    ("H200", "moe"): (0,),
    ("H200", "gemma"): "does not know the architecture Gemma3ForConditionalGeneration",
    ("H200", "act-order"): "GPTQ with desc_act",
}


@pytest.mark.parametrize(("name", "kind"), TABLE)
def test_box_and_model(tmp_path: Path, box: Any, name: str, kind: str) -> None:
    model(tmp_path / "a", kind)
    (tmp_path / "a.gguf").write_bytes(gguf())
    expected = TABLE[name, kind]
    found = planned(tmp_path, box(name))["a"]
    both = planned(tmp_path, box(name), gguf=Source("file", "a.gguf"), context=1024)["a"]
    if isinstance(expected, tuple):
        assert (found.engine, settings(found).devices) == ("lmdeploy", expected)
        assert settings(found).python == PYTHON
        assert found.reasons[0].startswith("LMDeploy's TurboMind in ")
        assert both.engine == "lmdeploy"
        total = settings(found).weights_bytes + settings(found).cache_bytes
        assert total < box(name).gpus[0].memory_bytes
    else:
        assert found.engine is None
        assert found.refusal is not None
        assert found.refusal.startswith("LMDeploy cannot run it: ")
        assert expected in found.refusal
        if kind != "gemma" and expected is not NO_ROOM:
            assert both.engine == "llamacpp"
            assert expected in both.reasons[0]


def test_gguf_stands_in_with_the_reason(tmp_path: Path, box: Any) -> None:
    model(tmp_path / "a", "fp16")
    (tmp_path / "a.gguf").write_bytes(gguf())
    both = planned(tmp_path, box("T4"), gguf=Source("file", "a.gguf"), context=4096)["a"]
    assert both.engine == "llamacpp"
    assert "GPU 0 has 14.4 GiB" in both.reasons[0]
    only = planned(
        tmp_path, box("T4"), gguf=Source("file", "a.gguf"), context=4096, backend="lmdeploy"
    )["a"]
    assert only.engine is None


def test_old_gpus_compute_in_half_precision_new_ones_in_bfloat(tmp_path: Path, box: Any) -> None:
    folder_of(tmp_path / "a", LLAMA, 2 * GIB)
    assert settings(planned(tmp_path, box("T4"))["a"]).dtype == "float16"
    assert settings(planned(tmp_path, box("4090"))["a"]).dtype == "bfloat16"
    model(tmp_path / "q", "awq")
    assert settings(planned(tmp_path, box("4090"), ("q",))["q"]).dtype == "float16"


def test_kv_is_exact(tmp_path: Path, box: Any) -> None:
    model(tmp_path / "a", "fp16")
    found = settings(planned(tmp_path, box("4090"), context=1000, parallel=3)["a"])
    assert found.cache_bytes == 3 * 1000 * 2 * 32 * 8 * 128 * 2
    small = settings(
        planned(
            tmp_path,
            box("4090"),
            context=1000,
            parallel=3,
            lmdeploy=LmdeployOptions(quant_policy=8),
        )["a"]
    )
    assert small.cache_bytes == 3 * 1000 * 2 * 32 * 8 * (128 + 4)
    assert small.kv_bits == 8


# ── several models and several GPUs ──


def test_models_share_a_gpu_until_it_is_full(tmp_path: Path, box: Any) -> None:
    for name in ("a", "b", "c"):
        model(tmp_path / name, "awq")
    found = planned(tmp_path, box("4090"), ("a", "b", "c"), context=4096)
    assert [settings(found[name]).devices for name in ("a", "b")] == [(0,), (0,)]
    assert found["c"].refusal is not None
    assert "beside a and b" in found["c"].refusal
    taken = sum(settings(found[n]).weights_bytes + settings(found[n]).cache_bytes for n in "ab")
    assert taken < 24 * GIB


def test_models_fill_one_gpu_before_the_next(tmp_path: Path, box: Any) -> None:
    for name, kind in (("a", "awq"), ("b", "awq"), ("c", "fp16")):
        model(tmp_path / name, kind)
    found = planned(tmp_path, box("2 x 3090"), ("a", "b", "c"), context=4096)
    assert [settings(found[name]).devices for name in "abc"] == [(0,), (0,), (1,)]


def test_a_large_model_is_spread_and_its_trouble_is_told(tmp_path: Path, box: Any) -> None:
    folder_of(tmp_path / "a", LLAMA, 28 * GIB)
    found = planned(tmp_path, box("2 x 3090"))["a"]
    chosen = settings(found)
    assert chosen.devices == (0, 1)
    assert chosen.weights_bytes < 18 * GIB
    assert not chosen.grammars
    assert any("InternLM/lmdeploy#4266" in reason for reason in found.reasons)


def test_images_stay_on_one_gpu_unless_the_owner_says_otherwise(tmp_path: Path, box: Any) -> None:
    folder_of(tmp_path / "a", MODELS["vl"][0], 28 * GIB, GIB)
    refused = planned(tmp_path, box("2 x 3090"))["a"].refusal
    assert refused is not None
    assert "InternLM/lmdeploy#4053" in refused
    spread = planned(tmp_path, box("2 x 3090"), lmdeploy=LmdeployOptions(tp=2))["a"]
    assert settings(spread).devices == (0, 1)
    assert spread.media == ("image",)
    assert any("InternLM/lmdeploy#4053" in reason for reason in spread.reasons)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (LmdeployOptions(tp=4), "lmdeploy.tp = 4, and 2 can be used"),
        (LmdeployOptions(cache_max_entry_count=0.1), "is too little for the 4 GiB of KV"),
    ],
)
def test_settings_that_cannot_be(
    tmp_path: Path, box: Any, options: LmdeployOptions, expected: str
) -> None:
    model(tmp_path / "a", "fp16")
    refusal = planned(tmp_path, box("2 x 3090"), lmdeploy=options)["a"].refusal
    assert refusal is not None
    assert expected in refusal


def test_said_share_of_the_free_memory_is_taken(tmp_path: Path, box: Any) -> None:
    model(tmp_path / "a", "awq")
    options = LmdeployOptions(cache_max_entry_count=0.5)
    found = settings(planned(tmp_path, box("4090"), context=2048, lmdeploy=options)["a"])
    free = int(24564 * (1 << 20) * 0.96) - found.weights_bytes
    assert found.cache_bytes == int(free * 0.5)


def test_small_kv_shares_no_prefixes(tmp_path: Path, box: Any) -> None:
    model(tmp_path / "a", "fp16")
    found = planned(tmp_path, box("4090"), lmdeploy=LmdeployOptions(quant_policy=4))["a"]
    assert not settings(found).prefixes
    assert any("InternLM/lmdeploy#1744" in reason for reason in found.reasons)
    assert settings(planned(tmp_path, box("4090"))["a"]).prefixes


def test_every_known_bad_combination_names_its_threads() -> None:
    page = (Path(__file__).parents[2] / "docs/gpu.md").read_text()
    for row in known_bad.TABLE:
        assert row.threads
        assert all(thread.startswith("InternLM/lmdeploy#") for thread in row.threads)
        assert all(thread in row.reason for thread in row.threads)
        assert all(f"#{thread.partition('#')[2]}" in page for thread in row.threads)


# ── what config.json says ──


def changed(base: dict[str, Any], **quantisation: Any) -> dict[str, Any]:
    return base | {"quantization_config": quantisation}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LLAMA | {"head_dim": 96}, "heads have 96 numbers"),
        (LLAMA | {"architectures": []}, "names no architecture"),
        ({"architectures": ["LlamaForCausalLM"]}, "has no 'num_attention_heads'"),
        (LLAMA | {"sliding_window": 4096}, "a window of 4096 tokens"),
        (changed(LLAMA, **AWQ | {"version": "gemv"}), 'AWQ of version "gemv"'),
        (changed(LLAMA, **{k: v for k, v in AWQ.items() if k != "version"}), 'version "None"'),
        (changed(LLAMA, **AWQ | {"group_size": None}), "group_size = None"),
        (LLAMA | {"architectures": ["Glm4MoeLiteForCausalLM"], "vision_config": {}},
         "Glm4MoeLiteForCausalLM without images only"),
        (changed(LLAMA, **AWQ | {"group_size": 64}), "awq with groups of 64"),
        (changed(LLAMA, **AWQ | {"bits": 8}), "awq with 8 bits"),
        (changed(LLAMA, quant_method="gptq", bits=4, sym=False), "asymmetric"),
        (changed(LLAMA, quant_method="bitsandbytes"), 'quantisation "bitsandbytes"'),
        (changed(LLAMA, quant_method="smooth_quant"), 'quantisation "smooth_quant"'),
        (changed(LLAMA, quant_method="fp8"), "FP8 other than e4m3"),
        (changed(LLAMA, quant_method="compressed-tensors"), "other than 4-bit integers"),
        ({"architectures": ["InternVLChatModel"], "llm_config": {
            "architectures": ["Phi3ForCausalLM"], "hidden_size": 1}}, "Phi3ForCausalLM inside"),
    ],
)  # fmt: skip
def test_unfit_models(tmp_path: Path, box: Any, config: dict[str, Any], expected: str) -> None:
    folder_of(tmp_path / "a", config, GIB)
    refusal = planned(tmp_path, box("H200"))["a"].refusal
    assert refusal is not None
    assert expected in refusal


@pytest.mark.parametrize(
    "config",
    [
        changed(LLAMA, quant_method="compressed-tensors", config_groups={
            "group_0": {"format": "pack-quantized",
                        "weights": {"num_bits": 4, "type": "int", "group_size": 32}}}),
        changed(LLAMA, quant_method="mxfp4"),
        LLAMA | {"sliding_window": None},
        {"architectures": ["InternVLChatModel"],
         "llm_config": MODELS["awq"][0] | {"architectures": ["Qwen2ForCausalLM"]}},
    ],
)  # fmt: skip
def test_fit_models(tmp_path: Path, box: Any, config: dict[str, Any]) -> None:
    folder_of(tmp_path / "a", config, GIB)
    assert settings(planned(tmp_path, box("H200"))["a"]).devices == (0,)


def test_small_kv_needs_wide_heads(tmp_path: Path, box: Any) -> None:
    folder_of(tmp_path / "a", LLAMA | {"head_dim": 64}, GIB)
    options = LmdeployOptions(quant_policy=8)
    refusal = planned(tmp_path, box("H200"), lmdeploy=options)["a"].refusal
    assert refusal is not None
    assert "lmdeploy.quant_policy = 8 needs attention heads of 128" in refusal


def test_pytorch_engine_runs_what_turbomind_does_not_know_if_it_may(
    tmp_path: Path, box: Any
) -> None:
    model(tmp_path / "a", "gemma")
    options = LmdeployOptions(pytorch=True)
    found = planned(tmp_path, box("H200"), lmdeploy=options)["a"]
    assert settings(found).backend == "pytorch"
    assert any("does not know the architecture Gemma3" in reason for reason in found.reasons)
    older = planned(tmp_path, box("T4"), lmdeploy=options)["a"]
    assert older.refusal is not None
    assert "PyTorch engine needs compute capability 8.0" in older.refusal


# ── the rest of the box ──


def test_environment_is_needed(tmp_path: Path, box: Any) -> None:
    model(tmp_path / "a", "awq")
    found = planned(tmp_path, box("4090", Engines(llamacpp="1")))["a"]
    assert found.refusal is not None
    assert "it is not installed: `edged setup-cuda` does that" in found.refusal


def test_other_processors_have_no_wheels(tmp_path: Path, box: Any) -> None:
    model(tmp_path / "a", "awq")
    jetson = box("4090")
    jetson = replace(jetson, cpu=replace(jetson.cpu, architecture="aarch64"))
    found = planned(tmp_path, jetson)["a"]
    assert found.refusal is not None
    assert "no wheels of it for aarch64" in found.refusal


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"kind": "embeddings"}, "serves chat models"),
        ({"sampling": Sampling(presence_penalty=0.5)}, "sampling.presence_penalty"),
        ({"context": 200_000}, "beyond the 32768 tokens"),
        ({"safetensors": Source("file", "none")}, "none does not exist"),
    ],
)
def test_what_it_cannot_serve(
    tmp_path: Path, box: Any, fields: dict[str, Any], expected: str
) -> None:
    model(tmp_path / "a", "awq")
    refusal = planned(tmp_path, box("4090"), **fields)["a"].refusal
    assert refusal is not None
    assert expected in refusal


def test_files_are_fetched_only_for_a_box_that_can_use_them(tmp_path: Path, box: Any) -> None:
    source = Source("hf", "Qwen/Qwen2.5-7B-Instruct-AWQ")
    found = planned(tmp_path, box("4090"), safetensors=source)["a"]
    assert (found.engine, found.missing) == ("lmdeploy", (source,))
    assert planned(tmp_path, box("no driver"), safetensors=source)["a"].missing == ()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda path: (path / "config.json").unlink(), "has no config.json"),
        (lambda path: (path / "config.json").write_text("{"), "config.json that cannot be read"),
        (lambda path: (path / "model.safetensors").unlink(), "has no .safetensors file"),
        (lambda path: (path / "model.safetensors").write_bytes(b"x"), "a damaged file"),
        (lambda path: os.truncate(path / "model.safetensors", 1 << 20), "a truncated file"),
    ],
)
def test_damaged_folders(tmp_path: Path, box: Any, damage: Any, expected: str) -> None:
    damage(model(tmp_path / "a", "awq"))
    refusal = planned(tmp_path, box("4090"))["a"].refusal
    assert refusal is not None
    assert str(tmp_path / "a") in refusal
    assert expected in refusal


def test_vocabulary_that_no_worker_could_read(tmp_path: Path, box: Any) -> None:
    folder = folder_of(tmp_path / "a", LLAMA, GIB)
    (folder / "tokenizer.json").unlink()
    refusal = planned(tmp_path, box("4090"))["a"].refusal
    assert refusal is not None
    assert "has no tokenizer.json" in refusal
