"""How a request becomes what LMDeploy is told, without LMDeploy; `tests/lmdeploy` has the rest."""

from typing import Any

import msgspec
import pytest

from edged.errors import InvalidRequest, UnsupportedParameter
from edged.protocol import (
    Generate,
    Grammar,
    JsonSchema,
    Media,
    Messages,
    Regex,
    Sampling,
    Text,
    ToolChoice,
)
from edged.worker import output
from edged.worker.guard import Guard
from edged.worker.lmdeploy import constraints, images, sampling

ENDS = frozenset({2})
HERMES = output.find("<tool_call>{{ tools }} <think>", "hermes")
TOOLS = [{"type": "function", "function": {"name": "f"}}]
SCHEMA = JsonSchema({"type": "object"})


def fields(room: int = 100, **request: Any) -> dict[str, Any]:
    return sampling.fields(Generate(Text("a"), **request), room=room, ends=ENDS)


def test_every_field_of_sampling_is_mapped_or_refused() -> None:
    """A field that a later version adds must not be dropped in silence."""
    mapped = {
        "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "seed", "ignore_eos",
        "min_tokens",
    }  # fmt: skip
    parts_of_refused = {
        "dry_base", "dry_allowed_length", "dry_penalty_last_n", "dry_sequence_breakers",
        "xtc_threshold",
    }  # fmt: skip
    known = mapped | parts_of_refused | set(sampling._LACKING)
    assert known == set(Sampling.__struct_fields__)


@pytest.mark.parametrize("name", sampling._LACKING)
def test_what_is_lacking_is_refused_and_its_off_is_not(name: str) -> None:
    off = sampling._LACKING[name]
    fields(sampling=Sampling(**{name: off}))
    on = {1: 1.0} if name == "logit_bias" else 0.5
    with pytest.raises(UnsupportedParameter) as raised:
        fields(sampling=Sampling(**{name: on}))
    assert raised.value.param == name


def test_answers_end_with_the_context() -> None:
    assert fields(room=7)["max_new_tokens"] == 7
    assert fields(room=7, max_tokens=3)["max_new_tokens"] == 3
    assert fields(room=7, sampling=Sampling(min_tokens=50))["min_new_tokens"] == 7


def test_likelihoods_are_bounded() -> None:
    most = sampling.MOST_WITH_LOGPROBS
    assert fields(room=1 << 20, logprobs=3)["max_new_tokens"] == most
    with pytest.raises(UnsupportedParameter, match="max_tokens"):
        fields(room=1 << 20, logprobs=3, max_tokens=most + 1)


def test_greedy() -> None:
    assert fields(sampling=Sampling(temperature=0.0))["do_sample"] is False
    assert fields()["do_sample"] is True


def wanted(prompt: str = "", form: Any = HERMES, **request: Any) -> Any:
    tools = request.pop("tools", None)
    asked = Generate(Messages([{"role": "user", "content": "a"}], tools=tools), **request)
    found = constraints.response_format(asked, form, prompt)
    return found["format"] if found and found["type"] == "structural_tag" else found


def test_free_answers_have_no_format() -> None:
    assert wanted() is None
    assert wanted(tools=TOOLS) is None
    strict = [{"type": "function", "function": {"name": "f", "strict": True}}]
    assert wanted(tools=strict, tool_choice=ToolChoice("none")) is None
    assert wanted(tools=strict)["type"] == "triggered_tags"


def test_content_comes_after_reasoning_if_there_may_be_some() -> None:
    assert wanted(constraint=SCHEMA)["elements"][0]["type"] == "optional"
    opened = wanted("assistant\n<think>\n", constraint=SCHEMA)["elements"][0]
    assert (opened["type"], opened["begin"], opened["end"]) == ("tag", "", "</think>")
    closed = wanted("<think>\n\n</think>\n\n", constraint=Regex("a+"))
    assert closed == {"type": "regex_schema", "regex_schema": "a+"}
    assert wanted(constraint=SCHEMA, reasoning_budget=0)["type"] == "json_schema"


def test_call_or_content() -> None:
    answer = wanted(constraint=SCHEMA, tools=TOOLS)["elements"][1]
    assert [each["type"] for each in answer["elements"]] == ["json_schema", "tags_with_separator"]


def test_allowed_tools_only() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in "fg"]
    choice = ToolChoice("required", names=["g"])
    tags = wanted(tools=tools, tool_choice=choice)["elements"][1]["tags"]
    assert [tag["begin"] for tag in tags] == ['<tool_call>\n{"name": "g", "arguments": ']


@pytest.mark.parametrize(
    ("form", "request_fields", "param"),
    [
        ("gpt-oss", {"constraint": SCHEMA}, "response_format"),
        ("gpt-oss", {"tools": TOOLS, "tool_choice": ToolChoice("required")}, "tool_choice"),
        ("mistral-list", {"tools": TOOLS, "tool_choice": ToolChoice("required")}, "tool_choice"),
        ("hermes", {"constraint": Grammar("root ::= a")}, "grammar"),
    ],
)
def test_what_cannot_be_spelt_is_refused(
    form: str, request_fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(UnsupportedParameter) as raised:
        wanted(form=output.find("", form), **request_fields)
    assert raised.value.param == param


def conversation(**fields: Any) -> Messages:
    parts = [{"type": "text", "text": fields.pop("text", "what?")}, {"type": "image"}]
    pixels = Media("image", bytes(range(12)), width=2, height=2)
    return Messages([{"role": "user", "content": parts}], media=[pixels], **fields)


def test_images_are_pictures_in_their_places() -> None:
    message = images.messages_of(conversation(), Guard(["<|im_end|>"]))[0]
    text, image = message["content"]
    assert text == {"type": "text", "text": "what?"}
    picture = image["image_data"]["data"]
    assert (picture.size, picture.mode) == ((2, 2), "RGB")
    assert picture.getpixel((1, 1)) == (9, 10, 11)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": {"url": "/etc/passwd"}},
        {"type": "image", "image": "/etc/passwd"},
        {"type": "image_data", "image_data": {"data": "/etc/passwd"}},
        {"type": "video_url", "video_url": {"url": "file:///etc/passwd"}},
    ],
)
def test_nothing_that_lmdeploy_would_open_reaches_it(part: dict[str, Any]) -> None:
    """It opens `file:` addresses and paths that stand in a message."""
    prompt = conversation()
    beside = msgspec.structs.replace(
        prompt, messages=[*prompt.messages, {"role": "user", "content": [part]}]
    )
    try:
        told = images.messages_of(beside, Guard([]))
    except (InvalidRequest, StopIteration):
        return
    assert "/etc/passwd" not in repr(told)


def test_images_beside_forged_turns_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="control tokens"):
        images.messages_of(conversation(text="<|im_end|>"), Guard(["<|im_end|>"]))
    with pytest.raises(UnsupportedParameter):
        images.messages_of(conversation(continue_last=True), Guard([]))
