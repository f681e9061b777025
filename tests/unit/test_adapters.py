"""Adapters in models.toml and in the plan: which entries and files are good, and what is said."""

import os
from pathlib import Path
from typing import Any

import pytest

from edged import config, plan
from edged.config import Adapter, LlamaCppOptions, Source
from edged.hardware import Hardware
from edged.plan import ModelPlan
from tests.unit.gguf_bytes import MODEL, TENSORS, gguf
from tests.unit.test_plan import GIB, box, folder, one

__all__ = ["folder"]

ADAPTER: dict[str, Any] = {
    "general.architecture": "llama",
    "general.type": "adapter",
    "adapter.type": "lora",
    "adapter.lora.alpha": 8.0,
}
K = "blk.0.attn_k.weight"
PAIR = [(f"{K}.lora_a", (64, 4), 0), (f"{K}.lora_b", (4, 32), 0)]
Tensors = list[tuple[str, tuple[int, ...], int]]


# ── models.toml ──


def parse(*lines: str, source: str = 'gguf = "file:/m"') -> config.Config:
    text = "\n".join(["[models.m]", source, 'aliases = ["other"]', *lines])
    return config.parse(text.encode(), Path("models.toml"))


def problems(*lines: str, **more: str) -> list[str]:
    with pytest.raises(config.ConfigProblems) as caught:
        parse(*lines, **more)
    return [str(problem).removeprefix("models.toml:") for problem in caught.value.problems]


def test_entries_are_a_source_or_a_table() -> None:
    found = parse(
        "[models.m.llamacpp.lora]",
        'support = "file:/s.gguf"',
        'sales = { gguf = "hf:org/repo:F16", scale = 0.5, aliases = ["shop"] }',
    )
    assert found.models["m"].llamacpp.lora == (
        Adapter("support", Source("file", "/s.gguf")),
        Adapter("sales", Source("hf", "org/repo:F16"), 0.5, ("shop",)),
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x = 1", 'models.m.llamacpp.lora.x.gguf must be "builtin:NAME"'),
        ('x = "/a.gguf"', 'did you mean "file:/a.gguf"?'),
        ("x = {}", "models.m.llamacpp.lora.x needs gguf = …"),
        ('x = { gguf = "file:/a", scal = 1 }', 'scal is not a known key; did you mean "scale"?'),
        ('x = { gguf = "file:/a", scale = nan }', "scale must be a number from -100 to 100"),
        ('" x" = "file:/a"', "as a name must be printable text without blanks"),
        ('x = { gguf = "file:/a", aliases = ["m"] }', '"m" is already the name of a model'),
        ('x = { gguf = "file:/a", aliases = ["other"] }', '"other" is already the name of the'),
    ],
)
def test_bad_entry_is_named_with_its_line(line: str, expected: str) -> None:
    (found,) = problems("[models.m.llamacpp.lora]", 'good = "file:/g"', line)
    assert found.startswith("6: ")
    assert expected in found


def test_all_bad_entries_are_reported_at_once() -> None:
    found = problems(
        "[models.m.llamacpp.lora]", "a = 1", "[models.m.llamacpp.lora.b]", "", "scale = 1000"
    )
    assert [line.partition(":")[0] for line in found] == ["5", "6", "8"]


def test_lora_must_be_a_table() -> None:
    (found,) = problems('llamacpp.lora = "file:/a"')
    assert "must be a table of names: write [models.m.llamacpp.lora]" in found


def test_adapters_belong_to_one_model_with_files() -> None:
    (found,) = problems("[defaults.llamacpp.lora]", 'a = "file:/a"')
    assert "belongs to one model" in found
    (found,) = problems("llamacpp.lora.a = 'file:/a'", source='upstream = "http://x/v1"')
    assert "an upstream has its own adapters" in found


def test_full_name_of_an_adapter_is_taken() -> None:
    (found,) = problems(
        "llamacpp.lora.a = 'file:/a'", '[models."m:a"]', 'gguf = "file:/b"', "pin = true"
    )
    assert found.startswith('4: models.m.llamacpp.lora.a "m:a" is already the name of a model')


# ── the plan ──


def planned(
    folder: Path,
    metadata: dict[str, Any] | None = None,
    tensors: Tensors | None = None,
    *,
    hardware: Hardware | None = None,
    **fields: Any,
) -> ModelPlan:
    content = gguf(ADAPTER | (metadata or {}), PAIR if tensors is None else tensors)
    (folder / "lora.gguf").write_bytes(content)
    lora = (Adapter("x", Source("file", "lora.gguf"), 0.5, ("short",)),)
    return one(folder, hardware, llamacpp=LlamaCppOptions(lora=lora), **fields)


def test_good_adapter_is_planned_and_counted(folder: Path) -> None:
    found = planned(folder)
    (adapter,) = found.adapters
    assert adapter.refusal is None
    assert adapter.file
    assert adapter.file.path == str(folder / "lora.gguf")
    assert adapter.scale == 0.5
    assert found.memory
    bare = one(folder).memory
    assert bare
    # the weights, and the product of a batch beside the model's own, twice
    assert found.memory.total_bytes - bare.total_bytes == 4 * (64 * 4 + 4 * 32) + 2 * 512 * 32 * 4


def test_adapters_do_not_change_the_launch_but_a_changed_file_is_an_update(folder: Path) -> None:
    def whole(model: ModelPlan) -> plan.Plan:
        return plan.Plan(config.Config(), box(), {"a": model}, {"a": "a"})

    bare, first = one(folder), planned(folder)
    assert bare.launch == first.launch
    assert plan.diff(whole(bare), whole(first)).updated == ("a",)
    os.utime(folder / "lora.gguf", ns=(1, 1))
    second = one(folder, llamacpp=first.model.llamacpp)
    assert plan.diff(whole(first), whole(second)).updated == ("a",)
    assert first.files != second.files


@pytest.mark.parametrize(
    ("metadata", "tensors", "expected"),
    [
        ({"general.type": "model"}, None, "holds a model, not an adapter"),
        ({"adapter.type": "ia3"}, None, "of type 'ia3'"),
        ({"adapter.alora.invocation_tokens": [1, 2]}, None, "activated LoRA (aLoRA)"),
        ({"general.architecture": "qwen2"}, None, "of the architecture qwen2, not llama"),
        ({}, [], "without weights"),
        ({}, PAIR[:1], f"has {K}.lora_a and not {K}.lora_b"),
        ({}, [*PAIR, ("blk.0.x", (1,), 0)], "blk.0.x, which is no part of a LoRA"),
        ({}, [(n.replace("0", "9", 1), s, t) for n, s, t in PAIR], "which the model does not have"),
        ({}, [PAIR[0], (f"{K}.lora_b", (4, 16), 0)], "it is for another model"),
        ({}, [PAIR[0], (f"{K}.lora_b", (8, 32), 0)], "it is for another model"),
        ({}, [(f"{K}.lora_a", (64, 4, 2), 0), (f"{K}.lora_b", (4, 32, 2), 0)], "another model"),
        ({}, [(f"{K}.lora_a", (64, 4), 26), PAIR[1]], "cannot be [64, 4] of I32"),
        ({}, [(f"{K}.lora_a", (64,), 0), PAIR[1]], "cannot be [64] of F32"),
    ],
)
def test_bad_adapter_refuses_itself_not_its_model(
    folder: Path, metadata: dict[str, Any], tensors: Tensors | None, expected: str
) -> None:
    found = planned(folder, metadata, tensors)
    assert found.refusal is None
    (adapter,) = found.adapters
    assert adapter.refusal
    assert expected in adapter.refusal
    assert adapter.file is None
    assert f"adapter 'x' cannot be used: {adapter.refusal}" in found.reasons


def test_norms_in_an_adapter_are_read_over(folder: Path) -> None:
    (found,) = planned(folder, tensors=[*PAIR, ("blk.0.attn_norm.weight", (64,), 0)]).adapters
    assert found.refusal is None


def test_embedding_is_looked_up_the_other_way_round(folder: Path) -> None:
    name = "token_embd.weight"
    right = [(f"{name}.lora_a", (2, 4), 0), (f"{name}.lora_b", (2, 64), 0)]
    wrong = [(f"{name}.lora_a", (64, 2), 0), (f"{name}.lora_b", (2, 4), 0)]
    assert planned(folder, tensors=right).adapters[0].refusal is None
    assert planned(folder, tensors=wrong).adapters[0].refusal


def test_nvfp4_takes_no_adapter_in_its_feed_forward_part(folder: Path) -> None:
    name = "blk.0.ffn_up.weight"
    (folder / "a.gguf").write_bytes(gguf(MODEL, [*TENSORS, (name, (64, 128), 40)]))
    pair = [(f"{name}.lora_a", (64, 4), 0), (f"{name}.lora_b", (4, 128), 0)]
    (found,) = planned(folder, tensors=pair).adapters
    assert found.refusal
    assert "NVFP4" in found.refusal


def test_missing_and_distant_files_say_what_to_do(folder: Path) -> None:
    lora = (Adapter("x", Source("file", "none.gguf")), Adapter("y", Source("hf", "org/repo")))
    missing, distant = one(folder, llamacpp=LlamaCppOptions(lora=lora)).adapters
    assert "none.gguf does not exist" in str(missing.refusal)
    assert "edged pull" in str(distant.refusal)


def test_adapter_that_does_not_fit_beside_its_model_is_refused(folder: Path) -> None:
    bare = one(folder).memory
    assert bare
    limit = (bare.total_bytes + 1000) * 4 // 3  # a quarter is kept for the rest of the box
    found = planned(folder, hardware=box(min(limit, GIB)))
    assert found.refusal is None
    assert "are left beside its model" in str(found.adapters[0].refusal)


def test_other_kinds_of_models_have_none(folder: Path) -> None:
    (folder / "a.gguf").write_bytes(gguf(MODEL | {"llama.pooling_type": 1}))
    found = planned(folder)
    assert found.kind == "embeddings"
    assert found.adapters[0].refusal == "adapters are for chat models"


def test_adapter_answers_to_every_way_of_its_name(folder: Path) -> None:
    (folder / "lora.gguf").write_bytes(gguf(ADAPTER, PAIR))
    text = f"""
        [defaults]
        context = 64
        [models.a]
        gguf = "file:{folder}/a.gguf"
        aliases = ["b"]
        llamacpp.lora.x = {{ gguf = "file:lora.gguf", aliases = ["short"] }}
        [models."b:x"]
        gguf = "file:{folder}/a.gguf"
        """
    loaded = config.parse(text.encode(), folder / "models.toml")
    made = plan.make(loaded, box())
    assert made.adapters == {"a:x": "x", "short": "x"}
    assert made.names == {"a": "a", "b": "a", "b:x": "b:x", "a:x": "a", "short": "a"}
    assert made.resolve("short").model.name == "a"
