"""The table of families against the configuration, and against the templates of real models."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from edged.config.keys import OutputFormat
from edged.worker.output import FORMATS, SHOWN_TOKENS, find
from edged.worker.output.syntax import MARKERS, Harmony
from tests.models.cache import UnavailableError
from tests.models.source import llama_cpp_source

# Every template that ships with llama.cpp and shows tools or calls: its family, and the tag with
# which its model starts to reason.
TEMPLATES = {
    "Apriel-1.6-15b-Thinker-fixed": ("apriel", "Here are my reasoning steps:\n"),
    "Bielik-11B-v3.0-Instruct": ("hermes", "<think>"),
    "ByteDance-Seed-OSS": ("seed-oss", "<seed:think>"),
    "Cohere2MoE": ("command-r7b", "<|START_THINKING|>"),
    "CohereForAI-c4ai-command-r-plus-tool_use": ("command-r", None),
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": ("command-r7b", "<|START_THINKING|>"),
    "GLM-4.6": ("glm-4.5", "<think>"),
    "GLM-4.7-Flash": ("glm-4.5", "<think>"),
    "HuggingFaceTB-SmolLM3-3B": ("generic", "<think>"),
    "Kimi-K2-Instruct": ("kimi-k2", None),
    "Kimi-K2-Thinking": ("kimi-k2", "<think>"),
    "LFM2-8B-A1B": ("lfm2", None),
    "LFM2.5-8B-A1B": ("lfm2", "<think>"),
    "LFM2.5-Instruct": ("lfm2", None),
    "MiniMax-M2": ("minimax-m2", "<think>"),
    "Mistral-Small-3.2-24B-Instruct-2506": ("mistral-call-id", None),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": ("qwen3-coder", "<think>"),
    "NVIDIA-Nemotron-Nano-v2": ("nemotron", "<think>"),
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": ("hermes", None),
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": ("hermes", None),
    "Qwen-QwQ-32B": ("hermes", "<think>"),
    "Qwen-Qwen2.5-7B-Instruct": ("hermes", None),
    "Qwen-Qwen3-0.6B": ("hermes", "<think>"),
    "Qwen3-Coder": ("qwen3-coder", None),
    "Qwen3.5-4B": ("qwen3-coder", "<think>"),
    "Reka-Edge": ("hermes", "<think>"),
    "StepFun3.5-Flash": ("qwen3-coder", "<think>"),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": ("deepseek-v3", "<think>"),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": ("deepseek-v3", "<think>"),
    "deepseek-ai-DeepSeek-V3.1": ("deepseek-v3.1", "<think>"),
    "fireworks-ai-llama-3-firefunction-v2": ("firefunction", None),
    "google-gemma-2-2b-it": ("generic", None),
    "ibm-granite-granite-3.3-2B-Instruct": ("granite", "<think>"),
    "ibm-granite-granite-4.0": ("hermes", None),
    "ibm-granite-granite-4.1": ("hermes", None),
    "llama-cpp-deepseek-r1": ("deepseek-v3", "<think>"),
    "meetkai-functionary-medium-v3.1": ("functionary-v3.1", None),
    "meetkai-functionary-medium-v3.2": ("functionary-v3.2", None),
    "meta-llama-Llama-3.1-8B-Instruct": ("llama3", None),
    "meta-llama-Llama-3.2-3B-Instruct": ("llama3", None),
    "meta-llama-Llama-3.3-70B-Instruct": ("llama3", None),
    "microsoft-Phi-3.5-mini-instruct": ("generic", None),
    "mistralai-Ministral-3-14B-Reasoning-2512": ("mistral", "[THINK]"),
    "mistralai-Mistral-Nemo-Instruct-2407": ("mistral-list", None),
    "moonshotai-Kimi-K2": ("kimi-k2", None),
    "openai-gpt-oss-120b": ("gpt-oss", None),
    "openbmb-MiniCPM5-1B": ("minicpm", "<think>"),
    "unsloth-Apriel-1.5": ("apriel", "<thinking>"),
    "unsloth-mistral-Devstral-Small-2507": ("mistral", None),
}
WITHOUT_TOOLS = {"deepseek-ai-DeepSeek-V3.1", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B"}


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return llama_cpp_source() / "vendor/llama.cpp/models/templates"
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", TEMPLATES)
def test_family_is_found_from_the_template(folder: Path, name: str) -> None:
    form = find((folder / f"{name}.jinja").read_text())
    assert (form.name, form.thinks and form.thinks.opening) == TEMPLATES[name]


@pytest.mark.parametrize("name", sorted(WITHOUT_TOOLS))
def test_template_without_tools_is_told_hermes_and_read_both_ways(folder: Path, name: str) -> None:
    form = find((folder / f"{name}.jinja").read_text())
    assert form.calls[0] == find(None).calls[0]
    assert len(form.calls) == 2
    told = find((folder / f"{name}.jinja").read_text(), shows_tools=True)
    assert told.calls == form.calls[1:]


def test_names_are_those_of_the_configuration() -> None:
    names = [form.name for form in FORMATS]
    assert len(set(names)) == len(names)
    assert {"auto", *names} == set(get_args(OutputFormat))


def test_name_overrides_the_template(folder: Path) -> None:
    qwen = (folder / "Qwen-Qwen3-0.6B.jinja").read_text()
    assert find(qwen).name == "hermes"
    assert find(qwen, "glm-4.5").name == "glm-4.5"
    assert find(None, "llama3").name == "llama3"
    with pytest.raises(KeyError):
        find(qwen, "glm")


def test_no_template_is_generic() -> None:
    assert find(None).name == find("").name == "generic"


def test_every_tag_of_the_table_is_shown() -> None:
    assert {t for m in MARKERS for t in (m.opening, m.closing)} <= SHOWN_TOKENS
    assert {"<tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|channel|>"} <= SHOWN_TOKENS
    assert {"<|END_ACTION|>", "<|python_tag|>", "<seed:think>", "</arg_value>"} <= SHOWN_TOKENS
    # What ends a turn is an end and no text, whatever the family.
    assert not {"<|im_end|>", "<|eot_id|>", "</s>", "<|endoftext|>"} & SHOWN_TOKENS


def test_only_channels_have_no_opening_of_their_own() -> None:
    for form in FORMATS:
        assert form.calls
        assert not any(isinstance(call, Harmony) for call in form.calls[1:])
