"""Guesses from a small model with the same vocabulary, which runs ahead of the large one.

Belongs to the engine thread, like its runner. It keeps a sequence of its own for each one that it
guesses for, takes back what was guessed wrong, and catches up with what it has not seen, a batch
at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from msgspec.structs import replace

from edged.protocol import Launch
from edged.worker import output
from edged.worker.engine import BadModelError
from edged.worker.llamacpp.runner import Decoded, Runner
from edged.worker.llamacpp.sequence import Sequence

_WEIGHT = 0.2  # of the newest measurement
_STRIDE = 61  # every so many tokens of the two vocabularies are compared


def open_drafter(
    launch: Launch, runner: Runner, progress: Callable[[float], bool]
) -> Drafter | None:
    """Load the small model of a launch beside the model itself; None if it has none.

    Raises BadModelError where the two do not go together, and what `Runner` raises.
    """
    settings = launch.llamacpp
    if settings is None or settings.draft is None:
        return None
    own = replace(settings, mmproj=None, draft=None)
    small = Runner(
        replace(launch, path=settings.draft, llamacpp=own), output.SHOWN_TOKENS, progress
    )
    ours, its = runner.vocab, small.vocab
    n = ours.n_tokens
    if its.n_tokens != n or any(ours.piece(i) != its.piece(i) for i in range(0, n, _STRIDE)):
        small.close()
        raise BadModelError(f"{settings.draft} has another vocabulary than {launch.path}")
    if not small.facts.cuttable:
        small.close()
        raise BadModelError(f"{settings.draft} cannot take back what it guessed wrong")
    return Drafter(small)


class _Draft:
    """What the small model has computed of one sequence: `tokens`, under its sequence id `slot`."""

    __slots__ = ("slot", "tokens")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.tokens: list[int] = []


class Drafter:
    """The small model of one loaded model."""

    def __init__(self, runner: Runner) -> None:
        assert runner.facts.cuttable
        self.token_s = 0.0  # what one more guess takes; moving average
        self._runner = runner
        self._drafts: dict[Sequence, _Draft] = {}
        self._free_slots = list(range(runner.sequences - 1, -1, -1))

    def draft(self, wanted: Mapping[Sequence, int]) -> dict[Sequence, list[int]]:
        """Return up to so many likeliest next tokens for each sequence.

        One that the small model has not caught up with yet is left out.
        """
        guesses: dict[Sequence, list[int]] = {s: [] for s in wanted}
        rows = self._decode(self._catch_up(wanted))
        started, n_steps = time.monotonic(), 0
        while rows:
            for sequence, token in rows.items():
                guesses[sequence].append(token)
            more = {s: [t] for s, t in rows.items() if len(guesses[s]) < wanted[s]}
            rows = self._decode({s: (tokens, True) for s, tokens in more.items()})
            n_steps += 1
        if n_steps > 1:
            self._learn((time.monotonic() - started) / (n_steps - 1))
        return {s: tokens for s, tokens in guesses.items() if tokens}

    def use_threads(self, threads: tuple[int, int]) -> None:
        """Compute with these threads of decode and prefill."""
        self._runner.threads = threads

    def drop(self, sequence: Sequence) -> None:
        """Forget a sequence; an unknown one is no error."""
        draft = self._drafts.pop(sequence, None)
        if draft is not None:
            self._runner.cut(draft.slot, 0)
            self._free_slots.append(draft.slot)

    def close(self) -> None:
        """Free the small model."""
        self._runner.close()

    def _catch_up(self, wanted: Mapping[Sequence, int]) -> dict[Sequence, tuple[list[int], bool]]:
        """Return what has to be computed first: (tokens, whether they are all)."""
        room = self._runner.batch
        work: dict[Sequence, tuple[list[int], bool]] = {}
        for sequence in wanted:
            draft = self._drafts.get(sequence)
            if draft is None:
                if not self._free_slots:
                    continue
                draft = self._drafts[sequence] = _Draft(self._free_slots.pop())
            self._take_back(draft, sequence.tokens)
            pending = sequence.tokens[len(draft.tokens) :]
            n = min(len(pending), room)
            if n:
                work[sequence] = (pending[:n], n == len(pending))
            room -= n
        return work

    def _take_back(self, draft: _Draft, tokens: list[int]) -> None:
        """Cut what was guessed wrong; one token at least is left to compute, for its logits."""
        same = min(len(draft.tokens), len(tokens) - 1)
        while draft.tokens[:same] != tokens[:same]:
            same -= 1
        if same < len(draft.tokens):
            del draft.tokens[same:]
            self._runner.cut(draft.slot, same)

    def _decode(self, work: dict[Sequence, tuple[list[int], bool]]) -> dict[Sequence, int]:
        """Compute; return the likeliest next token of each sequence that is complete."""
        if not work:
            return {}
        chunks = [
            (self._drafts[s].slot, len(self._drafts[s].tokens), tokens, int(complete))
            for s, (tokens, complete) in work.items()
        ]
        self._runner.resume()
        if self._runner.decode(chunks) is not Decoded.DONE:
            for sequence in list(self._drafts):  # no room: begin anew
                self.drop(sequence)
            return {}
        complete = [s for s, (_, all_) in work.items() if all_]
        for sequence, (tokens, _) in work.items():
            self._drafts[sequence].tokens += tokens
        if not complete:
            return {}
        rows = self._runner.rows()
        return {s: int(rows[i].argmax()) for i, s in enumerate(complete)}

    def _learn(self, seconds: float) -> None:
        old = self.token_s
        self.token_s = seconds if old == 0.0 else old + _WEIGHT * (seconds - old)
