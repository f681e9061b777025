"""What the comparison of chat templates says to both sides, and where they may differ."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

# ── what is said ──


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _assistant(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def _result(call_id: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'The weather of a city <now> & "here"',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name of the city, e.g. Zürich"},
                "days": {"type": "integer"},
                "unit": {"type": "string", "enum": ["C", "F"]},
            },
            "required": ["city"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "The time",
        "parameters": {"type": "object", "properties": {}},
    },
}
ZURICH = _call("call00001", "get_weather", '{"city": "Zürich", "days": 2}')
BERN = _call("call00002", "get_weather", '{"city": "Bern & <b>"}')
BRIEF = {"role": "system", "content": "Be brief."}
THOUGHT = {"reasoning_content": "I must look."}


class Conversation(Struct):
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    continued: bool = False


CONVERSATIONS = {
    "user": Conversation([_user("Hi there")]),
    "system": Conversation([BRIEF, _user("Hi there")]),
    "turns": Conversation(
        [
            BRIEF,
            _user("Hi"),
            _assistant("Hello!"),
            _user("How are you?"),
            _assistant("Fine."),
            _user("Good: é 中 <b>"),
        ]
    ),
    "tools": Conversation([_user("Weather?")], [WEATHER, CLOCK]),
    "tools and system": Conversation([BRIEF, _user("Weather?")], [WEATHER]),
    "called": Conversation(
        [
            _user("Weather?"),
            _assistant(None, tool_calls=[ZURICH]),
            _result("call00001", '{"t": 7}'),
        ],
        [WEATHER, CLOCK],
    ),
    "said and called": Conversation(
        [
            _user("Weather?"),
            _assistant("Let me see.", tool_calls=[ZURICH]),
            _result("call00001", '{"t": 7}'),
            _assistant("It is 7 degrees."),
            _user("Thanks"),
        ],
        [WEATHER, CLOCK],
    ),
    "called twice": Conversation(
        [
            BRIEF,
            _user("Weather?"),
            _assistant("", tool_calls=[ZURICH, BERN]),
            _result("call00001", "sunny"),
            _result("call00002", "rain"),
            _assistant("Sunny and rain."),
            _user("And now?"),
        ],
        [WEATHER, CLOCK],
    ),
    "thought": Conversation(
        [
            _user("2+2?"),
            _assistant("4", reasoning_content="Two and two is four."),
            _user("And 3+3?"),
        ]
    ),
    "thought and called": Conversation(
        [
            _user("Weather?"),
            _assistant("", tool_calls=[ZURICH], **THOUGHT),
            _result("call00001", "sunny"),
        ],
        [WEATHER],
    ),
    "thought, said and called": Conversation(
        [
            _user("Weather?"),
            _assistant("Looking.", tool_calls=[ZURICH], **THOUGHT),
            _result("call00001", "sunny"),
        ],
        [WEATHER],
    ),
    "called without tools": Conversation(
        [
            _user("Weather?"),
            _assistant("", tool_calls=[ZURICH]),
            _result("call00001", "sunny"),
            _assistant("Sunny."),
            _user("Thanks"),
        ]
    ),
    "parts": Conversation(
        [
            {"role": "system", "content": [_part("Be brief.")]},
            _user([_part("One."), _part("Two.")]),
        ]
    ),
    "developer": Conversation([BRIEF | {"role": "developer"}, _user("Hi")]),
    "not thinking": Conversation([BRIEF, _user("Hi")], settings={"enable_thinking": False}),
    "two turns of the user": Conversation([_user("One."), _user("Two.")]),
    "late system": Conversation([_user("Hi"), _assistant("Hello!"), BRIEF, _user("And?")]),
    "continued": Conversation([_user("Count to five."), _assistant("One, two,")], continued=True),
    "continued later": Conversation(
        [
            BRIEF,
            _user("Hi"),
            _assistant("Hello!"),
            _user("Count to five."),
            _assistant("One, two,"),
        ],
        continued=True,
    ),
}

# ── where the two differ, and why ──

WITH_TOOLS = (
    "tools",
    "tools and system",
    "called",
    "said and called",
    "called twice",
    "thought and called",
    "thought, said and called",
)
WITH_CALLS = (*WITH_TOOLS[2:], "called without tools")
CONTINUED = ("continued", "continued later")

GROUPS: list[tuple[str, str, tuple[str, ...]]] = [
    (
        (
            "The template shows no tools: llama-server leaves them out without a word, edged "
            "describes them, and writes calls and results in the same manner."
        ),
        (
            "HuggingFaceTB-SmolLM3-3B deepseek-ai-DeepSeek-R1-Distill-Llama-8B "
            "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B deepseek-ai-DeepSeek-V3.1 "
            "llama-cpp-rwkv-world microsoft-Phi-3.5-mini-instruct google-gemma-2-2b-it"
        ),
        WITH_TOOLS,
    ),
    (
        (
            "The template drops calls (DeepSeek's: those with empty content); edged says them "
            "as text, or with the content that the template wants."
        ),
        (
            "HuggingFaceTB-SmolLM3-3B deepseek-ai-DeepSeek-R1-Distill-Llama-8B "
            "llama-cpp-rwkv-world microsoft-Phi-3.5-mini-instruct google-gemma-2-2b-it"
        ),
        ("called without tools",),
    ),
    (
        (
            "The template shows tools and results, and drops calls; edged writes them as the "
            "model does."
        ),
        "LFM2-8B-A1B LFM2.5-Instruct ibm-granite-granite-3.3-2B-Instruct",
        WITH_CALLS,
    ),
    (
        (
            "The template wants the tools as JSON text in `functions`, which llama-server "
            "leaves empty."
        ),
        "fireworks-ai-llama-3-firefunction-v2",
        WITH_TOOLS,
    ),
    (
        (
            "Moonshot's own examples put the tool's name into its result; clients of OpenAI do "
            "not, so edged adds it."
        ),
        "Kimi-K2-Instruct Kimi-K2-Thinking",
        WITH_CALLS,
    ),
    (
        (
            "The template takes one call a message: llama-server refuses two, edged says them "
            "one after the other."
        ),
        (
            "meta-llama-Llama-3.1-8B-Instruct meta-llama-Llama-3.2-3B-Instruct "
            "meta-llama-Llama-3.3-70B-Instruct"
        ),
        ("called twice",),
    ),
    (
        "llama-server drops what was said beside a call.",
        (
            "google-gemma-4-31B-it-interleaved openai-gpt-oss-120b Cohere2MoE "
            "CohereForAI-c4ai-command-r7b-12-2024-tool_use muse-glimmer"
        ),
        ("thought, said and called",),
    ),
    (
        "llama-server drops what was said beside a call.",
        "google-gemma-4-31B-it-interleaved",
        ("said and called",),
    ),
    (
        "The template reads `reasoning`, which llama-server does not give it.",
        "upstage-Solar-Open-100B",
        ("thought and called", "thought, said and called"),
    ),
    (
        (
            "llama-server takes it for a Ministral: the template prints the first part of the "
            "content alone, so what was said is lost."
        ),
        "unsloth-mistral-Devstral-Small-2507",
        ("thought", "thought, said and called"),
    ),
    (
        ("llama-server prints a list as Python does where the template takes text of the system."),
        "google-gemma-4-31B-it google-gemma-4-31B-it-interleaved",
        ("parts",),
    ),
    (
        (
            "The template takes parts and joins them with nothing between; transformers and "
            "edged leave it to that."
        ),
        "LFM2.5-8B-A1B mistralai-Ministral-3-14B-Reasoning-2512",
        ("parts",),
    ),
    (
        (
            "A system message that is not the first is refused, dropped or moved to the start; "
            "edged puts it into the user's turn that follows."
        ),
        (
            "Apertus-8B-Instruct Bielik-11B-v3.0-Instruct HuggingFaceTB-SmolLM3-3B MiniMax-M1 "
            "MiniMax-M2 MiniMax-M3 Mistral-Small-3.2-24B-Instruct-2506 NVIDIA-Nemotron-Nano-v2 "
            "Qwen3.5-4B Reka-Edge deepseek-ai-DeepSeek-R1-Distill-Llama-8B "
            "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B google-gemma-2-2b-it "
            "llama-cpp-deepseek-r1 llama-cpp-rwkv-world "
            "mistralai-Ministral-3-14B-Reasoning-2512 mistralai-Mistral-Nemo-Instruct-2407 "
            "openai-gpt-oss-120b"
        ),
        ("late system",),
    ),
    (
        ("The template insists on turns that alternate: llama-server refuses, edged joins them."),
        (
            "Mistral-Small-3.2-24B-Instruct-2506 mistralai-Ministral-3-14B-Reasoning-2512 "
            "mistralai-Mistral-Nemo-Instruct-2407 google-gemma-2-2b-it"
        ),
        ("two turns of the user",),
    ),
    (
        (
            "The template refuses a system message; edged puts a blank line between it and the "
            "user's words, as Google's later templates do, llama-server a line end."
        ),
        "google-gemma-2-2b-it",
        ("system", "turns", "developer", "not thinking", "continued later"),
    ),
    (
        (
            "The template shows the system message before a last turn of the user alone; edged "
            "shows it before the first."
        ),
        "mistralai-Mistral-Nemo-Instruct-2407",
        ("continued later",),
    ),
    (
        ("The template calls `enable_thinking` `thinking`, and edged hands it on under that name."),
        "Kimi-K3",
        ("not thinking",),
    ),
    (
        (
            "edged cuts the prompt inside the message, as transformers does; llama-server "
            "writes the message behind a prompt for a new one, with a closed thought (or the "
            "generation prompt's other trimmings) that the template would not write."
        ),
        (
            "Apriel-1.6-15b-Thinker-fixed Bielik-11B-v3.0-Instruct ByteDance-Seed-OSS "
            "Cohere2MoE CohereForAI-c4ai-command-r-plus-tool_use "
            "CohereForAI-c4ai-command-r7b-12-2024-tool_use GLM-4.6 GLM-4.7-Flash "
            "HuggingFaceTB-SmolLM3-3B Kimi-K2-Instruct LFM2-8B-A1B LFM2.5-8B-A1B "
            "LFM2.5-Instruct MiniMax-M2 MiniMax-M3 NVIDIA-Nemotron-3-Nano-30B-A3B-BF16 "
            "NVIDIA-Nemotron-Nano-v2 Qwen-QwQ-32B Spark2.5 StepFun3.5-Flash "
            "deepseek-ai-DeepSeek-R1-Distill-Llama-8B deepseek-ai-DeepSeek-R1-Distill-Qwen-32B "
            "deepseek-ai-DeepSeek-V4 deepseek-ai-DeepSeek-V4-Flash-0731 google-gemma-4-31B-it "
            "google-gemma-4-31B-it-interleaved ibm-granite-granite-3.3-2B-Instruct "
            "llama-cpp-deepseek-r1 llama-cpp-rwkv-world microsoft-Phi-3.5-mini-instruct "
            "mistralai-Ministral-3-14B-Reasoning-2512 moonshotai-Kimi-K2 muse-glimmer "
            "openai-gpt-oss-120b openbmb-MiniCPM5-1B poolside-Laguna-XS-2.1 "
            "poolside-Laguna-XS.2 unsloth-mistral-Devstral-Small-2507 upstage-Solar-Open-100B"
        ),
        CONTINUED,
    ),
]
DIFFERENCES = {
    (template, conversation): reason
    for reason, templates, conversations in GROUPS
    for template in templates.split()
    for conversation in conversations
}
