"""Images and sounds on their way through a chat template: each one is a mark in the text.

A template knows text only, so a message's images and sounds become words that nobody can guess,
and the rendered prompt is cut at these words. What the model needs around an image, such as
`<start_of_image>`, comes from its projector, as in llama-server.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from edged.errors import InvalidRequest
from edged.protocol import Messages

SHOWN = "<__media__>"  # how a prompt is shown, in llama-server's word


class Markers:
    """The marks of one conversation."""

    def __init__(self, prompt: Messages) -> None:
        self._word = f"<__media_{secrets.token_hex(8)}_"
        self._pattern = re.compile(re.escape(self._word) + r"(\d+)__>")
        self._n = 0
        self._n_media = len(prompt.media)
        #: The conversation with marks in it; every content is one string.
        self.prompt = replace(
            prompt, messages=[self._marked(message) for message in prompt.messages], media=[]
        )
        assert self._n == self._n_media, "as many parts as images and sounds"

    def _marked(self, message: dict[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        if not isinstance(content, list) or all(part["type"] == "text" for part in content):
            return message
        text, after_text = "", False
        for part in content:
            if part["type"] == "text":
                text += ("\n" if after_text else "") + part["text"]
            else:
                text += f"{self._word}{self._n}__>"
                self._n += 1
            after_text = part["type"] == "text" and text != ""
        return message | {"content": text}

    def split(self, parts: Iterable[tuple[str, bool]]) -> list[list[tuple[str, bool]] | int]:
        """Return the runs of a rendered prompt, and between them the number of what stands there.

        Raises InvalidRequest when the template has left one out.
        """
        runs: list[list[tuple[str, bool]] | int] = []
        run: list[tuple[str, bool]] = []
        for text, special in parts:
            for i, piece in enumerate(self._pattern.split(text)):
                if i % 2:
                    runs += [run, int(piece)]
                    run = []
                elif piece:
                    run.append((piece, special))
        runs.append(run)
        missing = set(range(self._n_media)) - {each for each in runs if isinstance(each, int)}
        if missing:
            raise InvalidRequest(
                "the model's chat template leaves out images or sounds of these messages; "
                "send them in the last message of the user",
                param="messages",
            )
        return runs

    def shown(self, text: str) -> str:
        """Return a rendered prompt as a person may read it."""
        return self._pattern.sub(SHOWN, text)
