"""Runs an answer through the parser and joins what comes out, as a client would."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from edged.protocol import ToolChoice
from edged.worker.output import Format, Output


class Answer(Struct):
    """What a client has in the end. Ids are apart: some are random."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = []  # name and arguments
    stop: str | None = None
    stopped: bool = False
    called: bool = False
    ids: list[str] = []

    def known(self) -> tuple[Any, ...]:
        """Everything but the ids."""
        return self.content, self.reasoning, self.calls, self.stop, self.stopped, self.called


def read(
    form: Format | None,
    pieces: Sequence[bytes],
    *,
    tools: list[dict[str, Any]] | None = None,
    choice: ToolChoice | None = None,
    prompt: str = "",
    stop: Sequence[str] = (),
    cut: bool = False,
    enforced: bool = False,
    continued: bool = False,
) -> Answer:
    """Feed the pieces, check what holds for every answer, and join it."""
    output = Output(stop, form=form, prompt=prompt, continued=continued, tools=tools, choice=choice)
    if enforced:
        output.enforce()
    answer = Answer()
    joined: list[list[str]] = []
    for piece in [*map(output.feed, pieces), output.finish(cut=cut)]:
        assert not answer.stopped or not piece.shows, "something after the end"
        answer.content += piece.content
        answer.reasoning += piece.reasoning
        answer.stop = answer.stop or piece.stop
        answer.stopped = answer.stopped or piece.stopped
        for delta in piece.calls:
            if delta.id:
                assert delta.name
                assert delta.index == len(joined), "a call begins once, in order"
                joined.append([delta.id, delta.name, ""])
            assert delta.index == len(joined) - 1
            assert bool(delta.id) == bool(delta.name)
            joined[delta.index][2] += delta.arguments
    answer.calls = [(name, arguments) for _, name, arguments in joined]
    answer.ids = [call_id for call_id, _, _ in joined]
    answer.called = output.called
    assert answer.called == bool(joined)
    return answer


def cut_at(data: bytes, borders: Sequence[int]) -> list[bytes]:
    """Return `data` in pieces."""
    places = sorted({min(b, len(data)) for b in borders} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]
