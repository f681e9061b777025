"""Level B: the adapter on the real AsyncEngine, over a native part that is played.

Proves how requests, errors and aborts go through LMDeploy's Python; no token here was computed.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from lmdeploy.metrics.metrics_processor import metrics_processor
from msgspec.structs import replace

from edged.protocol import (
    Delta,
    Detokenize,
    Embed,
    Grammar,
    JsonSchema,
    Media,
    Messages,
    Regex,
    Render,
    Sampling,
    Text,
    Tokenize,
    ToolChoice,
)
from edged.protocol import Tokens as Ids
from edged.worker.engine import BadModelError, EngineMissingError
from edged.worker.lmdeploy.engine import LmdeployEngine
from tests.lmdeploy.contract.box import CONTEXT, PARALLEL, Box, chat, content, failed, finish, until

# ── answers ──


async def test_answer_with_its_usage(box: Box) -> None:
    box.says("Hello, wörld 🦙!")
    box.native.cached = 2
    events = await box.ask("once")
    last = finish(events)
    assert content(events) == "Hello, wörld 🦙!"
    n = len("Hello, wörld 🦙!".encode()) + 1  # the end token counts
    assert (last.reason, last.usage.prompt_tokens) == ("stop", 4)
    assert (last.usage.completion_tokens, last.usage.cached_tokens) == (n, 2)
    assert sum(event.n_tokens for event in events if isinstance(event, Delta)) == n - 1
    assert box.native.prompts == [
        list(box.engine._preparer.vocab.tokenize([("once", False)], wrap=True))
    ]


@pytest.mark.parametrize("step", [1, 2, 3, 7, 100])
async def test_characters_stay_whole(box: Box, step: int) -> None:
    box.says("ö🦙字é" * 5)
    box.native.pieces = iter([step] * 200)
    events = await box.ask()
    assert content(events) == "ö🦙字é" * 5
    assert all("\ufffd" not in e.content for e in events if isinstance(e, Delta))


async def test_length_ends_an_answer(box: Box) -> None:
    box.says("abcdefgh")
    events = await box.ask(max_tokens=3)
    assert (content(events), finish(events).reason) == ("abc", "length")
    assert finish(events).usage.completion_tokens == 3


async def test_context_is_never_overrun(box: Box) -> None:
    box.says("x" * 2 * CONTEXT)
    events = await box.ask("y" * (CONTEXT - 10))
    assert finish(events).usage.completion_tokens == 10
    config = box.native.configs[-1]
    assert config.max_new_tokens + CONTEXT - 10 < box.library.engine.session_len - 1
    too_long = failed(await box.ask("y" * CONTEXT))
    assert too_long.code == "context_length_exceeded"
    assert "this model's maximum context length is 512" in too_long.message


@pytest.mark.parametrize("step", [1, 4, 50])
async def test_stop_strings_of_any_length(box: Box, step: int) -> None:
    box.says("one two</answer> three")
    box.native.pieces = iter([step] * 99)
    events = await box.ask(stop=["</answer>"])
    assert content(events) == "one two"
    assert (finish(events).reason, finish(events).stop) == ("stop", "</answer>")
    assert not box.native.configs[-1].stop_words


async def test_stop_tokens_stop_even_beyond_the_end(box: Box) -> None:
    vocab = box.engine._preparer.vocab
    box.says("ab<|im_end|>cXd")
    stop = vocab.tokenize([("X", False)], wrap=False)
    events = await box.ask(stop_tokens=stop, sampling=Sampling(ignore_eos=True))
    assert content(events) == "abc"
    assert finish(events).reason == "stop"


async def test_reasoning_and_content_are_told_apart(box: Box) -> None:
    box.says("<think>\nhm, well</think>\n\nYes.")
    events = await box.ask(chat())
    reasoning = "".join(e.reasoning for e in events if isinstance(e, Delta))
    assert (reasoning, content(events)) == ("hm, well", "Yes.")
    usage = finish(events).usage
    assert 0 < usage.reasoning_tokens < usage.completion_tokens


TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


async def test_calls_are_read(box: Box) -> None:
    call = {"name": "weather", "arguments": {"city": "Köln"}}
    box.says(f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>")
    events = await box.ask(chat(tools=[TOOL]))
    calls = [c for e in events if isinstance(e, Delta) for c in e.calls]
    assert calls[0].name == "weather"
    assert json.loads("".join(c.arguments for c in calls)) == {"city": "Köln"}
    assert finish(events).reason == "tool_calls"


async def test_likelihoods_are_of_the_shown_tokens(box: Box) -> None:
    vocab = box.engine._preparer.vocab
    box.says("ö<|im_end|>")
    answer = list(box.native.answer)
    other = vocab.tokenize([("z", False)], wrap=False)[0]
    box.native.logprobs = [{token: -0.25, other: -2.0} for token in answer]
    events = await box.ask(logprobs=2)
    likelihoods = [one for e in events if isinstance(e, Delta) for one in e.logprobs]
    assert b"".join(one.text for one in likelihoods) == "ö".encode()
    assert [one.logprob for one in likelihoods] == [-0.25, -0.25]
    assert [one.token for one in likelihoods[0].top] == [answer[0], other]
    assert box.native.configs[-1].logprobs == 2


async def test_likelihood_alone(box: Box) -> None:
    box.says("a")
    box.native.logprobs = [{box.native.answer[0]: -0.5}, {}]
    events = await box.ask(logprobs=0)
    likelihoods = [one for e in events if isinstance(e, Delta) for one in e.logprobs]
    assert [(one.logprob, one.top) for one in likelihoods] == [(-0.5, [])]
    assert box.native.configs[-1].logprobs == 1


async def test_echo(box: Box) -> None:
    box.says("!")
    assert content(await box.ask("once", echo=True)) == "once!"


# ── what reaches the engine ──


async def test_sampling_is_passed_on(box: Box) -> None:
    box.says("a")
    await box.ask(
        sampling=Sampling(
            temperature=0.5,
            top_p=0.9,
            top_k=7,
            min_p=0.1,
            repeat_penalty=1.1,
            seed=-1,
            min_tokens=2,
        )
    )
    config = box.native.configs[-1]
    assert (config.do_sample, config.temperature, config.top_p) == (True, 0.5, 0.9)
    assert (config.top_k, config.min_p, config.repetition_penalty) == (7, 0.1, 1.1)
    assert (config.random_seed, config.min_new_tokens) == ((1 << 64) - 1, 2)


async def test_greedy_is_greedy_with_a_penalty_too(box: Box) -> None:
    box.says("a")
    await box.ask(sampling=Sampling(temperature=0.0))
    assert box.native.configs[-1].top_k == 1
    await box.ask(sampling=Sampling(temperature=0.0, repeat_penalty=1.3))
    assert box.native.configs[-1].top_k == 1
    assert box.native.configs[-1].repetition_penalty == 1.3


async def test_nothing_said_is_openais_defaults_and_not_lmdeploys(box: Box) -> None:
    box.says("a")
    await box.ask()
    config = box.native.configs[-1]
    assert (config.temperature, config.top_p, config.top_k) == (1.0, 1.0, 0)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"sampling": Sampling(presence_penalty=0.5)}, "presence_penalty"),
    ({"sampling": Sampling(frequency_penalty=-0.5)}, "frequency_penalty"),
    ({"sampling": Sampling(logit_bias={1: 2.0})}, "logit_bias"),
    ({"sampling": Sampling(typical_p=0.5)}, "typical_p"),
    ({"sampling": Sampling(dry_multiplier=0.5)}, "dry_multiplier"),
    ({"sampling": Sampling(xtc_probability=0.5)}, "xtc_probability"),
    ({"sampling": Sampling(top_k=2000)}, "top_k"),
    ({"constraint": Grammar("root ::= [a-z]")}, "grammar"),
    ({"reasoning_budget": 10}, "reasoning_budget"),
    ({"adapters": (("a", 1.0),)}, "model"),
    ({"logprobs": 1, "max_tokens": 100, "echo": True}, "echo"),
    ({"prompt": Text("a", suffix="b")}, "suffix"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
async def test_what_it_cannot_do_is_refused_by_name(
    box: Box, fields: dict[str, Any], param: str
) -> None:
    error = failed(await box.ask(**fields))
    assert (error.code, error.param) == ("unsupported_parameter", param)
    assert not box.native.prompts


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": Ids([])}, "prompt"),
        ({"prompt": Ids([1 << 40])}, "prompt"),
        ({"prompt": Ids([-1])}, "prompt"),
        ({"stop_tokens": [99999]}, "stop_token_ids"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 5000}, "logprobs"),
        ({"sampling": Sampling(temperature=5.0)}, None),
        ({"constraint": JsonSchema({"type": "strange"})}, None),
        ({"constraint": Regex("([")}, None),
        (
            {
                "prompt": Messages(
                    [{"role": "user", "content": [{"type": "image"}]}],
                    media=[Media("image", b"\0" * 12, 2, 2)],
                )
            },
            "messages",
        ),
    ],
)
async def test_bad_values_are_the_clients(
    box: Box, fields: dict[str, Any], param: str | None
) -> None:
    error = failed(await box.ask(**fields))
    assert error.code == "invalid_value", error
    assert error.param == param
    assert not box.native.prompts


async def test_what_a_client_spells_is_no_control_token(box: Box) -> None:
    box.says("a")
    vocab = box.engine._preparer.vocab
    await box.ask(chat("<|im_end|>"))
    end = vocab.tokenize([("<|im_end|>", True)], wrap=False)
    assert len(end) == 1
    assert box.native.prompts[-1].count(end[0]) == 1  # the template's own


# ── formats ──


def structure(box: Box) -> Any:
    said = box.native.configs[-1].response_format
    return said["format"] if said["type"] == "structural_tag" else said


async def test_schema_of_a_text_is_plain(box: Box) -> None:
    box.says("{}")
    await box.ask(constraint=JsonSchema({"type": "object"}))
    assert structure(box)["json_schema"]["schema"] == {"type": "object"}
    await box.ask(constraint=Regex("[ab]+"))
    assert structure(box) == {"type": "regex_schema", "regex_schema": "[ab]+"}


async def test_schema_after_reasoning_that_the_prompt_opened(box: Box) -> None:
    box.says("hm</think>{}")
    schema = {"type": "object"}
    prompt = chat(template_kwargs={"enable_thinking": True})
    await box.ask(prompt, constraint=JsonSchema(schema))
    thoughts, answer = structure(box)["elements"]
    assert (thoughts["begin"], thoughts["end"]) == ("", "</think>")
    assert answer == {"type": "json_schema", "json_schema": schema}


async def test_demanded_call_is_held_to_its_schema(box: Box) -> None:
    box.says('<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>')
    events = await box.ask(chat(tools=[TOOL]), tool_choice=ToolChoice("required", parallel=False))
    assert finish(events).reason == "tool_calls"
    thoughts, calls = structure(box)["elements"]
    assert (thoughts["type"], thoughts["content"]["begin"]) == ("optional", "<think>")
    assert (calls["at_least_one"], calls["stop_after_first"]) == (True, True)
    assert calls["tags"][0]["begin"] == '<tool_call>\n{"name": "weather", "arguments": '
    assert calls["tags"][0]["content"]["json_schema"] == TOOL["function"]["parameters"]


async def test_strict_tools_are_watched(box: Box) -> None:
    box.says("no call")
    strict = {"type": "function", "function": TOOL["function"] | {"strict": True}}
    events = await box.ask(chat(tools=[strict]))
    assert structure(box)["type"] == "triggered_tags"
    assert content(events) == "no call"


async def test_no_grammar_beside_an_image(folder: Path) -> None:
    """An image that fails between the two would leave the grammar with the next request."""
    made = Box(folder, images=True)
    await made.engine.load(made.launch, lambda _: None)
    parts = [{"type": "text", "text": "what?"}, {"type": "image"}]
    prompt = Messages([{"role": "user", "content": parts}], media=[Media("image", b"0" * 12, 2, 2)])
    error = failed(await made.ask(prompt, constraint=JsonSchema({"type": "object"})))
    assert (error.code, error.param) == ("unsupported_parameter", "response_format")
    assert not made.native.prompts
    await made.engine.close()


async def test_no_grammars_on_several_gpus(folder: Path) -> None:
    made = Box(folder, grammars=False)
    await made.engine.load(made.launch, lambda _: None)
    error = failed(await made.ask(constraint=JsonSchema({"type": "object"})))
    assert (error.code, error.param) == ("unsupported_parameter", "response_format")
    await made.engine.close()


# ── the rest ──


async def test_calls_that_are_no_generation(box: Box) -> None:
    tokenized = await box.engine.call(Tokenize("aö", id=1))
    assert b"".join(tokenized.pieces) == "aö".encode()
    text = await box.engine.call(Detokenize(tokenized.tokens, id=1))
    assert text.text == "aö"
    rendered = await box.engine.call(Render(chat("hi"), id=1))
    assert rendered.text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(Exception, match="chat model"):
        await box.engine.call(Embed([Text("a")], id=1))


async def test_stats_show_the_engines_progress(box: Box) -> None:
    before = box.engine.stats().progress
    box.says("abc")
    box.native.cached = 1
    await box.ask("xy")
    stats = box.engine.stats()
    assert stats.progress > before
    assert (stats.prompt_tokens, stats.cached_tokens, stats.completion_tokens) == (1, 1, 4)
    await until(lambda: box.engine.stats().cells_used > 0)
    assert box.engine.stats().cells_used == CONTEXT * PARALLEL / 4


async def test_prompts_are_neither_logged_nor_queued(
    box: Box, capfd: pytest.CaptureFixture[str]
) -> None:
    box.says("a")
    await box.ask("my darkest secret")
    await box.ask("y" * CONTEXT)  # refused
    assert metrics_processor.metrics_queue is None  # it has no limit
    out, err = capfd.readouterr()
    assert not out
    assert "secret" not in err


async def test_engine_gets_what_was_planned(box: Box) -> None:
    config = box.library.engine.backend_config
    assert (config.tp, config.max_batch_size, config.quant_policy) == (1, PARALLEL, 0)
    assert (config.dtype, config.enable_prefix_caching) == ("float16", True)
    assert config.session_len > CONTEXT
    assert 0 < config.cache_max_entry_count < 1


async def test_real_library_says_what_is_missing(folder: Path) -> None:
    """Without CUDA the real one has no native module, and says what mends that."""
    made = Box(folder)
    engine = LmdeployEngine()
    with pytest.raises(EngineMissingError, match="setup-cuda"):
        await engine.load(made.launch, lambda _: None)
    await engine.close()


async def test_folder_without_a_tokenizer(tmp_path: Path) -> None:
    made = Box(tmp_path)
    with pytest.raises(BadModelError, match=r"no tokenizer\.json"):
        await made.engine.load(made.launch, lambda _: None)


async def test_load_moves(folder: Path) -> None:
    seen: list[float] = []
    made = Box(folder)
    await made.engine.load(replace(made.launch), seen.append)
    assert seen
    assert all(0 <= each < 1 for each in seen)
    await made.engine.close()
