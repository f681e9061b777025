"""Each field of a request is honoured or refused: likelihoods, echo, gaps, ends."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from gguf import TokenType

from edged.protocol import Messages, Regex, Sampling, Text, Tokens
from edged.worker.llamacpp.engine import LlamaCppEngine
from tests.llamacpp.support import (
    EDGE_GUIDE,
    ask,
    begun_with,
    chat,
    launch,
    needs_llama_cpp,
    reference,
    request,
    running,
)
from tests.models import vocabulary
from tests.models.tiny import write_tiny

pytestmark = needs_llama_cpp

GREEDY = Sampling(temperature=0.0)
NO_END = Sampling(temperature=0.0, ignore_eos=True)


@pytest.fixture
async def engine() -> AsyncIterator[LlamaCppEngine]:
    async with running(launch()) as loaded:
        yield loaded


# ── likelihoods ──


async def test_likelihoods_equal_those_of_llama_cpp_python(engine: LlamaCppEngine) -> None:
    prompt = "Add a table [models.NAME] with a line"  # as edge-guide says it
    mine = await ask(engine, Text(prompt), max_tokens=24, logprobs=3, sampling=GREEDY)
    with reference(EDGE_GUIDE, logits_all=True) as llama:
        theirs = llama.create_completion(prompt, max_tokens=24, temperature=0.0, logprobs=3)
    said = theirs["choices"][0]
    assert mine.content == said["text"]
    assert [c.logprob for c in mine.logprobs] == pytest.approx(
        said["logprobs"]["token_logprobs"], abs=0.02
    )
    for one, top in zip(mine.logprobs, said["logprobs"]["top_logprobs"], strict=True):
        likeliest = sorted(top.values(), reverse=True)[:3]
        assert [x.logprob for x in one.top] == pytest.approx(likeliest, abs=0.02)
        assert one.top[0].token == one.token
        assert one.top[0].logprob == one.logprob


async def test_likelihoods_are_those_of_the_model_whatever_narrows_the_choice(
    engine: LlamaCppEngine,
) -> None:
    plain = await ask(engine, Text("edged is"), max_tokens=1, logprobs=20, sampling=NO_END)
    wanted = plain.logprobs[0].top[5]
    narrowed = await ask(
        engine,
        Text("edged is"),
        max_tokens=1,
        logprobs=20,
        sampling=Sampling(temperature=0.3, top_k=1, logit_bias={wanted.token: 100.0}),
    )
    assert narrowed.logprobs[0].token == wanted.token
    assert narrowed.logprobs[0].logprob == pytest.approx(wanted.logprob, abs=1e-3)
    assert [x.token for x in narrowed.logprobs[0].top] == [x.token for x in plain.logprobs[0].top]
    forced = await ask(engine, Text("edged is"), logprobs=0, constraint=Regex("zz"))
    assert forced.content == "zz"
    assert all(-9999 <= one.logprob < math.log(0.5) for one in forced.logprobs)
    assert all(not one.top for one in forced.logprobs)


async def test_likelihoods_spell_the_content(engine: LlamaCppEngine) -> None:
    answer = await ask(engine, "你好 🦊?", max_tokens=40, logprobs=0, stop=["never seen"])
    assert b"".join(one.text for one in answer.logprobs).decode() == answer.content
    assert answer.done.usage.completion_tokens - len(answer.logprobs) in {0, 1}  # the end token


async def test_tokens_of_a_stop_string_have_no_likelihood(engine: LlamaCppEngine) -> None:
    whole = await ask(engine, "What is edged?", max_tokens=40, sampling=NO_END, logprobs=0)
    stop = b"".join(one.text for one in whole.logprobs[10:13]).decode()
    cut = await ask(engine, "What is edged?", sampling=NO_END, logprobs=0, stop=[stop])
    assert cut.done.stop == stop
    assert cut.done.reason == "stop"
    spelt = b"".join(one.text for one in cut.logprobs).decode()
    assert spelt == cut.content == whole.content[: whole.content.index(stop)]


async def test_reasoning_has_no_likelihood(engine: LlamaCppEngine) -> None:
    prompt = Messages(chat("What is edged?").messages, template_kwargs={"enable_thinking": True})
    with begun_with(engine, "<think>\nHm.\n</think>\n\nIt is"):
        answer = await ask(engine, prompt, max_tokens=40, logprobs=1)
    assert answer.reasoning == "Hm."
    spelt = b"".join(one.text for one in answer.logprobs).decode()
    assert spelt == answer.content
    assert answer.done.usage.reasoning_tokens >= 3


async def test_answers_without_the_wish_carry_no_likelihoods(engine: LlamaCppEngine) -> None:
    assert not (await ask(engine, "What is edged?", max_tokens=8)).logprobs


# ── echo and gaps ──


async def test_echo_tells_the_prompt_first(engine: LlamaCppEngine) -> None:
    text = "edged is 你好"
    plain = await ask(engine, Text(text), max_tokens=8)
    echoed = await ask(engine, Text(text), max_tokens=8, echo=True)
    assert echoed.content == text + plain.content
    assert echoed.pieces[0] == text
    assert echoed.n_tokens == plain.n_tokens
    tokens = engine._runner.vocab.tokenize([(text, False)], wrap=True)
    of_tokens = await ask(engine, Tokens(tokens), max_tokens=8, echo=True)
    assert of_tokens.content == echoed.content


async def test_echo_with_likelihoods_is_refused(engine: LlamaCppEngine) -> None:
    answer = await ask(engine, Text("edged"), echo=True, logprobs=1)
    assert answer.failed is not None
    assert (answer.failed.code, answer.failed.param) == ("unsupported_parameter", "echo")


async def test_suffix_needs_a_model_that_knows_gaps(engine: LlamaCppEngine) -> None:
    answer = await ask(engine, Text("def f(", suffix="return x"))
    assert answer.failed is not None
    assert answer.failed.param == "suffix"
    assert "gap" in answer.failed.message


async def test_suffix_stands_between_the_tokens_of_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = vocabulary.small()
    gaps = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
    with_gaps = dataclasses.replace(
        words, tokens=words.tokens + gaps, types=words.types + (int(TokenType.CONTROL),) * 3
    )
    monkeypatch.setattr(vocabulary, "small", lambda: with_gaps)
    path = tmp_path / "gaps.gguf"
    write_tiny(path, "plain")
    async with running(launch(path)) as engine:
        vocab = engine._runner.vocab
        asked = Text("def f(x):\n", suffix="    return y\n")
        prepared = engine._preparer.prepare(request(asked))
        pieces = [vocab.spelling(token).decode() for token in prepared.sequence.tokens]
        n = len(words.tokens)
        assert prepared.sequence.tokens[0] == n
        assert prepared.sequence.tokens[-1] == n + 2
        assert "".join(pieces) == f"{gaps[0]}def f(x):\n{gaps[1]}    return y\n{gaps[2]}"
        answer = await ask(engine, asked, max_tokens=5, sampling=NO_END)
        assert answer.done.usage.prompt_tokens == len(pieces)
        assert answer.done.usage.completion_tokens == 5


# ── ends ──


async def test_stop_token_ends_the_answer_unseen(engine: LlamaCppEngine) -> None:
    whole = await ask(engine, "What is edged?", max_tokens=30, sampling=NO_END, logprobs=0)
    at = 12
    token = whole.logprobs[at].token
    first = next(i for i, one in enumerate(whole.logprobs) if one.token == token)
    cut = await ask(engine, "What is edged?", sampling=NO_END, stop_tokens=[token])
    assert cut.done.reason == "stop"
    assert cut.done.usage.completion_tokens == first + 1
    expected = b"".join(one.text for one in whole.logprobs[:first]).decode()
    assert cut.content == expected


async def test_stop_token_outside_the_vocabulary_is_refused(engine: LlamaCppEngine) -> None:
    answer = await ask(engine, "Hi", stop_tokens=[10**6])
    assert answer.failed is not None
    assert answer.failed.param == "stop_token_ids"


async def test_min_tokens_keep_the_answer_going(engine: LlamaCppEngine) -> None:
    short = await ask(engine, "What is edged?", max_tokens=400)
    n = short.done.usage.completion_tokens
    assert short.done.reason == "stop"
    long = await ask(
        engine,
        "What is edged?",
        max_tokens=400,
        sampling=Sampling(temperature=0.0, min_tokens=n + 20),
    )
    assert long.done.usage.completion_tokens >= n + 20
    assert long.content.startswith(short.content)


async def test_too_many_breakers_are_refused(engine: LlamaCppEngine) -> None:
    many = Sampling(dry_multiplier=0.8, dry_sequence_breakers=[str(i) for i in range(100)])
    answer = await ask(engine, "Hi", sampling=many)
    assert answer.failed is not None
    assert answer.failed.param == "dry_sequence_breakers"


async def test_dry_ends_repetitions(engine: LlamaCppEngine) -> None:
    text = Text("one two three four five six one two three four five six one two three four")
    plain = await ask(engine, text, max_tokens=60, sampling=NO_END)
    dry = Sampling(temperature=0.0, ignore_eos=True, dry_multiplier=5.0, dry_sequence_breakers=[])
    varied = await ask(engine, text, max_tokens=60, sampling=dry)
    assert len(set(varied.content.split())) > len(set(plain.content.split()))
