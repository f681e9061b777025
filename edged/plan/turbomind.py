"""What TurboMind, LMDeploy's engine, can run: from a model's `config.json` alone.

LMDeploy itself chooses TurboMind by the architecture and dies of an assertion when the rest does
not fit, after a worker was started and weights were read. The rules here are those of LMDeploy
0.18 (`turbomind/supported_models.py`, `turbomind/converter.py`); tests/lmdeploy compares them with
the wheel's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from msgspec import Struct

from edged.plan.kind import UnfitError

Config = Mapping[str, Any]


class Family(Struct, frozen=True):
    """How the models of one architecture are served."""

    head_dims: tuple[int, ...] = (64, 128)  # () where attention is of another kind
    reads_images: bool = False
    has_window: bool = False  # attention that looks back on a window only


_IMAGES = Family(reads_images=True)
_QWEN_3_5 = Family(head_dims=(64, 128, 256), reads_images=True)

#: `architectures` of config.json. What is not here TurboMind does not know.
FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(),
    "MixtralForCausalLM": Family(),
    "InternLM2ForCausalLM": Family(),
    "InternLM3ForCausalLM": Family(),
    "Qwen2ForCausalLM": Family(),
    "Qwen2MoeForCausalLM": Family(),
    "Qwen3ForCausalLM": Family(),
    "Qwen3MoeForCausalLM": Family(),
    "Qwen3_5ForConditionalGeneration": _QWEN_3_5,
    "Qwen3_5MoeForConditionalGeneration": _QWEN_3_5,
    "InternS2PreviewForConditionalGeneration": _QWEN_3_5,
    "InternS2MobiusForConditionalGeneration": _QWEN_3_5,
    "Qwen2VLForConditionalGeneration": _IMAGES,
    "Qwen2_5_VLForConditionalGeneration": _IMAGES,
    "InternVLChatModel": _IMAGES,
    "InternVLForConditionalGeneration": _IMAGES,
    "InternS1ForConditionalGeneration": _IMAGES,
    "Glm4MoeLiteForCausalLM": Family(head_dims=()),
    "GptOssForCausalLM": Family(has_window=True),
}

#: Compute capabilities that the wheel has machine code for. It has no PTX, so what is not of one
#: of these families, at least as new, cannot run it.
_MACHINE_CODE = ((7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
_BF16 = (8, 0)
_FP8 = (8, 0)  # below 8.9 as weights only; not known to work on older ones
LEAST_DRIVER = 525  # CUDA 12's minor version compatibility

_GROUPS = {"awq": (128,), "gptq": (128,), "compressed-tensors": (32, 128), "fp8": (128,)}
_QUANTISED_KV_HEAD = 128  # the only width with kernels for a 4 or 8 bit KV cache


class Shape(Struct, frozen=True):
    """What decides about memory: numbers of the language model."""

    layers: int  # with a KV cache
    kv_heads: int
    heads: int
    head_dim: int
    hidden: int
    feed_forward: int
    vocabulary: int
    trained_context: int | None
    is_tied: bool  # the output matrix is the input's: TurboMind holds it twice


def runs_on(capability: tuple[int, int] | None) -> bool:
    """Tell whether the wheel has machine code for a GPU."""
    return capability is not None and any(
        code[0] == capability[0] and code <= capability for code in _MACHINE_CODE
    )


def check(config: Config, *, capability: tuple[int, int], kv_bits: int) -> Family:
    """Return the family of a model that TurboMind can run; raises UnfitError.

    `kv_bits`: 0 for a KV cache in full precision.
    """
    family = _family(config)
    quantisation = find(config, "quantization_config")
    if quantisation is not None:
        _check_quantisation(quantisation, capability)
    shape = shape_of(config)
    if family.head_dims and shape.head_dim not in family.head_dims:
        raise UnfitError(
            f"its attention heads have {shape.head_dim} numbers, TurboMind computes "
            f"{' or '.join(map(str, family.head_dims))}"
        )
    if kv_bits and (shape.head_dim != _QUANTISED_KV_HEAD or not family.head_dims):
        raise UnfitError(
            f"lmdeploy.quant_policy = {kv_bits} needs attention heads of {_QUANTISED_KV_HEAD} "
            f"numbers, this model's have {shape.head_dim}: leave it out"
        )
    if not family.has_window and (window := _window(text_config(config))):
        raise UnfitError(
            f"its layers look back on a window of {window} tokens, which TurboMind cannot"
        )
    return family


def _family(config: Config) -> Family:
    named = config.get("architectures")
    name = str(named[0]) if isinstance(named, list) and named else ""
    if not name:
        raise UnfitError("its config.json names no architecture")
    family = FAMILIES.get(name)
    inner = config.get("llm_config")
    if family is not None and isinstance(inner, Mapping) and inner.get("architectures"):
        inside = str(inner["architectures"][0])
        if inside not in FAMILIES:
            raise UnfitError(f"TurboMind does not know the architecture {inside} inside of {name}")
    if family is None:
        raise UnfitError(f"TurboMind does not know the architecture {name}")
    if name == "Glm4MoeLiteForCausalLM" and config.get("vision_config") is not None:
        raise UnfitError(f"TurboMind knows {name} without images only")
    return family


def _check_quantisation(said: Config, capability: tuple[int, int]) -> None:
    method = said.get("quant_method")
    group = said.get("group_size", 0)
    if not isinstance(group, int):  # LMDeploy takes it for a number, whatever the method
        raise UnfitError(f'group_size = {group} in its "quantization_config" is no number')
    if method in ("awq", "gptq"):
        _check_four_bits(method, said)
    elif method == "compressed-tensors":
        group = _compressed_group(said)
    elif method == "fp8":
        if said.get("weight_block_size") != [128, 128] or said.get("fmt", "e4m3") != "e4m3":
            raise UnfitError("FP8 other than e4m3 in blocks of 128 × 128")  # noqa: RUF001
        if capability < _FP8:
            raise UnfitError(f"FP8 needs compute capability {_FP8[0]}.{_FP8[1]}")
    elif method != "mxfp4":
        raise UnfitError(f'the quantisation "{method}", which TurboMind does not read')
    allowed = _GROUPS.get(str(method))
    if allowed and group and group not in allowed:
        sizes = " or ".join(map(str, allowed))
        raise UnfitError(f"{method} with groups of {group}: TurboMind reads groups of {sizes}")


def _check_four_bits(method: str, said: Config) -> None:
    if method == "awq" and said.get("version") != "gemm":
        raise UnfitError(f'AWQ of version "{said.get("version")}": TurboMind reads "gemm" only')
    if method == "gptq" and (said.get("desc_act") or not said.get("sym", True)):
        raise UnfitError("GPTQ with desc_act or asymmetric: TurboMind reads neither")
    if said.get("bits", 4) != 4:  # noqa: PLR2004 - bits
        raise UnfitError(f"{method} with {said['bits']} bits: TurboMind reads 4")


def _compressed_group(said: Config) -> int:
    try:
        group = said["config_groups"]["group_0"]
        form, weights = group["format"], group["weights"]
        is_read = form == "pack-quantized" and (weights["num_bits"], weights["type"]) == (4, "int")
        size = int(weights["group_size"] or 0)
    except (KeyError, TypeError, AttributeError, ValueError):
        is_read, size = False, 0
    if not is_read or not size:
        raise UnfitError("compressed-tensors other than 4-bit integers in groups, packed")
    return size


def quantisation_of(config: Config) -> str:
    """Return the word for how weights are stored, for people."""
    said = find(config, "quantization_config")
    if said is not None:
        return str(said.get("quant_method", "unknown"))
    dtype = text_config(config).get("dtype") or text_config(config).get("torch_dtype")
    return str(dtype or config.get("dtype") or config.get("torch_dtype") or "unknown")


def dtype_on(config: Config, capability: tuple[int, int]) -> Literal["float16", "bfloat16"]:
    """Return in which numbers a GPU computes the model."""
    method = quantisation_of(config)
    if method in ("awq", "gptq", "compressed-tensors", "float16") or capability < _BF16:
        return "float16"
    return "bfloat16"


# ── config.json ──


def text_config(config: Config) -> Config:
    """Return the part about the language model of a model with images, else all of it."""
    for key in ("text_config", "llm_config"):
        inner = config.get(key)
        if isinstance(inner, Mapping) and inner.get("hidden_size"):
            return inner
    return config


def shape_of(config: Config) -> Shape:
    """Return the numbers that decide about memory; raises UnfitError where one is missing."""
    said = text_config(config)
    try:
        heads = int(said["num_attention_heads"])
        hidden = int(said["hidden_size"])
        layers = int(said["num_hidden_layers"])
        vocabulary = int(said.get("vocab_size") or config["vocab_size"])
        head_dim = int(said.get("head_dim") or hidden // heads)
        kv_heads = int(said.get("num_key_value_heads") or heads)
        experts = int(said.get("num_experts_per_tok") or 0)
        expert = int(said.get("moe_intermediate_size") or 0) * experts
        feed_forward = max(int(said.get("intermediate_size") or 0), expert)
    except KeyError as error:
        raise UnfitError(f"its config.json has no {error}") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise UnfitError(f"its config.json cannot be: {error}") from None
    kinds = said.get("layer_types")
    if isinstance(kinds, list) and kinds:
        layers = sum(kind != "linear_attention" for kind in kinds)
    rank = said.get("kv_lora_rank")
    if rank:  # MLA: one compressed key for all heads, which is the value too
        kv_heads, head_dim = 1, (int(rank) + int(said.get("qk_rope_head_dim") or 0) + 1) // 2
    trained = said.get("max_position_embeddings")
    tied = said.get("tie_word_embeddings", config.get("tie_word_embeddings", False))
    return Shape(
        layers=layers,
        kv_heads=kv_heads,
        heads=heads,
        head_dim=head_dim,
        hidden=hidden,
        feed_forward=feed_forward,
        vocabulary=vocabulary,
        trained_context=int(trained) if isinstance(trained, int) else None,
        is_tied=bool(tied),
    )


def find(config: Config, key: str) -> Config | None:
    """Return the first table of this name, at any depth."""
    return next(_tables(config, key), None)


def _tables(config: Config, key: str) -> Iterator[Config]:
    found = config.get(key)
    if isinstance(found, Mapping) and found:
        yield found
    for inner in config.values():
        if isinstance(inner, Mapping):
            yield from _tables(inner, key)


def _window(said: Config) -> int:
    window, context = said.get("sliding_window"), said.get("max_position_embeddings")
    # Qwen's files name a window that is off where nothing says otherwise
    is_on = said.get("use_sliding_window", not str(said.get("model_type")).startswith("qwen"))
    if not isinstance(window, int) or not is_on:
        return 0
    return 0 if isinstance(context, int) and window >= context else window
