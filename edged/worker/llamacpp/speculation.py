"""Guesses for running sequences: where they come from, and what became of them.

Belongs to the engine thread. Before a step `guess` puts guesses beside the sequences for which
they pay (`wager.py`); the scheduler lets them be computed where there is room, and the sampled
tokens judge them: a guess that differs from the token that is sampled at its place is cut away.
So an answer is the same as without guesses, at any temperature.
"""

from __future__ import annotations

from collections.abc import Iterable

from edged.worker.llamacpp.drafter import Drafter
from edged.worker.llamacpp.lookup import Lookup
from edged.worker.llamacpp.sequence import Sequence
from edged.worker.llamacpp.step import Batch, Chunk
from edged.worker.llamacpp.wager import MOST, Costs, Odds, Offer, stakes


class _Guesser:
    """What is known of one sequence."""

    __slots__ = ("drafted", "found", "lookup")

    def __init__(self, tokens: list[int]) -> None:
        self.lookup = Lookup(tokens)
        self.found = Odds()  # of what the text itself says
        self.drafted = Odds()


class Speculation:
    """The guesses of one loaded model. `most`: guesses of one step at the most; 0: none ever."""

    def __init__(self, *, most: int, drafter: Drafter | None = None) -> None:
        self.n_guessed = 0
        self.n_right = 0
        self._most = most
        self._drafter = drafter
        self._costs = Costs()
        self._guessers: dict[Sequence, _Guesser] = {}
        self._drafted: set[Sequence] = set()  # whose present guesses the drafter made

    def guess(self, running: Iterable[Sequence]) -> None:
        """Put guesses beside those of `running` that decode."""
        if not self._most:
            return
        decoding = [s for s in running if s.decoding and s.donor is None]
        if not decoding:
            return
        found = [self._look_up(sequence) for sequence in decoding]
        if self._drafter is None and not any(found):
            return
        offers = [self._offer(*each) for each in zip(decoding, found, strict=True)]
        taken = stakes(self._costs, len(decoding), offers, most=self._most)
        self._drafted.clear()
        wanted: dict[Sequence, int] = {}
        for sequence, tokens, offer, n in zip(decoding, found, offers, taken, strict=True):
            if n == 0 < offer.n:
                self._odds(sequence, drafted=not tokens).rest()
            sequence.guesses = tokens[:n]
            if n and not tokens:
                wanted[sequence] = n
        if wanted and self._drafter is not None:
            for sequence, tokens in self._drafter.draft(wanted).items():
                sequence.guesses = tokens
                self._drafted.add(sequence)

    def observe(self, batch: Batch, seconds: float) -> None:
        """Learn what a step of decodes took."""
        if self._most and all(chunk.last and chunk.n == 1 for chunk in batch.chunks):
            self._costs.observe(sum(chunk.n_cells for chunk in batch.chunks), seconds)

    def use_threads(self, threads: tuple[int, int]) -> None:
        """Steps take another time from now on, with these threads of decode and prefill."""
        self._costs.forget()
        if self._drafter is not None:
            self._drafter.use_threads(threads)

    def learn(self, chunk: Chunk, n_right: int) -> None:
        """Count what became of the guesses of a chunk."""
        n = len(chunk.guesses)
        self.n_guessed += n
        self.n_right += n_right
        odds = self._odds(chunk.sequence, drafted=chunk.sequence in self._drafted)
        odds.learn(guessed=n, right=n_right)

    def forget(self, sequence: Sequence) -> None:
        """A sequence has ended."""
        self._guessers.pop(sequence, None)
        self._drafted.discard(sequence)
        if self._drafter is not None:
            self._drafter.drop(sequence)

    def _look_up(self, sequence: Sequence) -> list[int]:
        guesser = self._guessers.get(sequence)
        if guesser is None:
            guesser = self._guessers[sequence] = _Guesser(sequence.tokens)
        n = self._room(sequence)
        return guesser.lookup.guess(n) if n > 0 else []

    def _offer(self, sequence: Sequence, found: list[int]) -> Offer:
        guesser = self._guessers[sequence]
        if found:
            return Offer(len(found), guesser.found.chance)
        if self._drafter is None:
            return Offer(0, 0.0)
        return Offer(self._room(sequence), guesser.drafted.chance, self._drafter.token_s)

    def _odds(self, sequence: Sequence, *, drafted: bool) -> Odds:
        guesser = self._guessers[sequence]
        return guesser.drafted if drafted else guesser.found

    @staticmethod
    def _room(sequence: Sequence) -> int:
        """Return how many tokens may come after the next one."""
        n = sequence.context - len(sequence.tokens) - 1
        if sequence.max_tokens is not None:
            n = min(n, sequence.max_tokens - sequence.n_generated - 1)
        return min(n, MOST)
