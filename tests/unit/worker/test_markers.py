"""Images and sounds as marks in the text of a conversation."""

from __future__ import annotations

from typing import Any

import pytest

from edged.errors import InvalidRequest
from edged.protocol import Media, Messages
from edged.worker.markers import Markers

IMAGE = Media("image", bytes(3), width=1, height=1)
PART = {"type": "image"}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def marked(*contents: Any) -> Markers:
    messages = [{"role": "user", "content": content} for content in contents]
    n = sum(part == PART for content in contents if isinstance(content, list) for part in content)
    return Markers(Messages(messages, media=[IMAGE] * n))


def rendered(markers: Markers) -> str:
    return "|".join(message["content"] for message in markers.prompt.messages)


@pytest.mark.parametrize(
    ("content", "shown"),
    [
        ([text("a"), PART, text("b")], "a<__media__>b"),
        ([PART, PART], "<__media__><__media__>"),
        ([text("a"), text("b"), PART, text("c"), text("d")], "a\nb<__media__>c\nd"),
        ([text(""), PART, text("")], "<__media__>"),
        ([{"type": "audio"}, text("a")], "<__media__>a"),
    ],
)
def test_lines_are_joined_as_llama_server_joins_them(content: Any, shown: str) -> None:
    media = [IMAGE] * sum(part["type"] != "text" for part in content)
    markers = Markers(Messages([{"role": "user", "content": content}], media=media))
    assert markers.shown(rendered(markers)) == shown


def test_messages_without_images_stay_as_they_are() -> None:
    markers = marked("plain", [text("one"), text("two")], [PART])
    assert markers.prompt.messages[0]["content"] == "plain"
    assert markers.prompt.messages[1]["content"] == [text("one"), text("two")]


def test_prompt_is_cut_at_its_marks_and_keeps_what_is_special() -> None:
    markers = marked([text("a"), PART], [PART, text("b")])
    first, second = (message["content"] for message in markers.prompt.messages)
    runs = markers.split([("<s>", True), (first, False), ("</s>", True), (second, False)])
    assert runs == [[("<s>", True), ("a", False)], 0, [("</s>", True)], 1, [("b", False)]]


def test_template_that_turns_messages_round_gets_the_right_images() -> None:
    markers = marked([PART], [PART])
    first, second = (message["content"] for message in markers.prompt.messages)
    assert markers.split([(second + first, True)]) == [[], 1, [], 0, []]


def test_image_that_the_template_leaves_out_is_an_error() -> None:
    markers = marked([PART], [PART])
    with pytest.raises(InvalidRequest, match="leaves out") as caught:
        markers.split([(markers.prompt.messages[1]["content"], True)])
    assert caught.value.param == "messages"


def test_marks_of_another_request_are_text() -> None:
    other = rendered(marked([PART]))
    markers = marked([text(other), text("<__media__>"), PART])
    (run, number, rest) = markers.split([(rendered(markers), False)])
    assert (run, number, rest) == ([(f"{other}\n<__media__>", False)], 0, [])


def test_more_parts_than_images_is_a_fault() -> None:
    with pytest.raises(AssertionError):
        Markers(Messages([{"role": "user", "content": [PART, PART]}], media=[IMAGE]))
