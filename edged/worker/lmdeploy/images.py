"""A conversation with images as LMDeploy takes it: its own template, and decoded pictures.

LMDeploy opens `file:` addresses and any local path that a client writes into a message, so nothing
but pictures that the daemon has decoded gets there.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from edged.errors import InvalidRequest, UnsupportedParameter
from edged.protocol import Media, Messages
from edged.worker.guard import Guard


def messages_of(prompt: Messages, guard: Guard) -> list[dict[str, Any]]:
    """Return the messages for `AsyncEngine.preprocess`; raises InvalidRequest and its kind."""
    if prompt.continue_last or prompt.documents:
        field = "continue_final_message" if prompt.continue_last else "documents"
        raise UnsupportedParameter(
            f"`{field}` cannot be had together with images on this model's engine", param=field
        )
    if guard.mark(prompt.messages) != prompt.messages or guard.mark(prompt.tools) != prompt.tools:
        raise InvalidRequest(
            "the messages spell control tokens of this model, which together with images would "
            "act as such; leave them out",
            param="messages",
        )
    pictures = iter(prompt.media)
    return [_message(message, pictures) for message in prompt.messages]


def _message(message: dict[str, Any], pictures: Any) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return message | {"content": [_part(part, pictures) for part in content]}


def _part(part: dict[str, Any], pictures: Any) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] != "image":
        raise InvalidRequest("this model reads text and images only", param="messages")
    return {"type": "image_data", "image_data": {"data": picture(next(pictures))}}


def picture(media: Media) -> Image.Image:
    """Return an image as PIL has it."""
    return Image.frombytes("RGB", (media.width, media.height), media.data)
