"""The built-in model as a new user meets it; its scores are in docs/edge-guide.md."""

from __future__ import annotations

from pathlib import Path

from edged.protocol import Messages
from edged.store.gguf import read_header
from tests.llamacpp.support import EDGE_GUIDE, ask, launch, needs_llama_cpp, running

QUESTIONS = [
    ("What is edged?", "LLM appliance"),
    ("How do I add a model?", "models.toml"),
    ("Where are the logs?", "journalctl -u edged"),
    ("How do I get an API key?", "edged key add"),
    ("edged 是什么", "大模型一体机"),
    ("如何添加模型", "models.toml"),
    ("What is the capital of France?", "small guide"),
]


def test_file_is_as_small_as_promised() -> None:
    assert EDGE_GUIDE.stat().st_size <= 8_000_000
    header = read_header(Path(EDGE_GUIDE))
    assert header.architecture == "qwen2"
    assert header.chat_template
    assert header.context_length == 2048


@needs_llama_cpp
async def test_answers_a_new_user_in_both_languages() -> None:
    async with running(launch(context=1024)) as engine:
        for question, words in QUESTIONS:
            answer = await ask(engine, question, max_tokens=120)
            assert words in answer.content, (question, answer.content)
            assert answer.done.reason == "stop"


@needs_llama_cpp
async def test_thinks_briefly_when_thinking_is_on() -> None:
    async with running(launch(context=1024)) as engine:
        asked = Messages(
            [{"role": "user", "content": "What is edged?"}],
            template_kwargs={"enable_thinking": True},
        )
        answer = await ask(engine, asked, max_tokens=200)
        assert 0 < len(answer.reasoning) < 400
        assert answer.content
