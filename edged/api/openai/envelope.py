"""What is around the choices of every reply of one request, whole and streamed.

Chunks are put together from encoded pieces: a stream sends thousands, and only the choice differs.
"""

from __future__ import annotations

import secrets
import time
from typing import Any

import msgspec
from msgspec import Struct

from edged.api.events import total
from edged.api.openai.usage import Timings, Usage, fingerprint
from edged.plan import ModelPlan
from edged.protocol import Finish

encode = msgspec.json.Encoder().encode


class Whole(Struct, kw_only=True):
    """Body of a reply that is not streamed, but for its choices."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str
    usage: Usage
    timings: Timings


class Envelope:
    """Id, model and time of one reply, with `n` answers a prompt.

    `whole` and `chunk`: the names of OpenAI's objects.
    """

    def __init__(
        self,
        plan: ModelPlan,
        *,
        prefix: str,
        whole: str,
        chunk: str,
        with_usage: bool,
        n: int = 1,
    ) -> None:
        self._n = n
        self._whole = whole
        self._with_usage = with_usage
        self._facts: dict[str, Any] = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": plan.model.name,
            "system_fingerprint": fingerprint(plan),
        }
        facts = encode(self._facts)[1:-1]
        self._head = b'data: {"object":%b,%b,"choices":[' % (encode(chunk), facts)
        self._no_usage = b',"usage":null' if with_usage else b""
        self._tail = b"]" + self._no_usage + b"}\n\n"

    def whole(self, finishes: list[Finish]) -> dict[str, Any]:
        """Return the fields of `Whole`."""
        finish = total(finishes, self._n)
        usage, timings = Usage.of(finish.usage), Timings.of(finish)
        return self._facts | {"object": self._whole, "usage": usage, "timings": timings}

    def chunk(self, choice: bytes) -> bytes:
        """Return the event with this encoded choice."""
        return self._head + choice + self._tail

    def end(self, choice: bytes, finishes: list[Finish]) -> bytes:
        """Return the event of the last choice, the one with the usage if wanted, and the end."""
        finish = total(finishes, self._n)
        timings = encode(Timings.of(finish))
        parts = [self._head, choice, b"]", self._no_usage, b',"timings":%b}\n\n' % timings]
        if self._with_usage:
            parts += [self._head, b'],"usage":%b}\n\n' % encode(Usage.of(finish.usage))]
        return b"".join([*parts, b"data: [DONE]\n\n"])
