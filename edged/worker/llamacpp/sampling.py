"""From a row of logits to a token: llama.cpp's sampler chain in numpy, without its full copies.

Order as in llama-server: bias, penalties, DRY, then (unless greedy) top_k, typical_p, top_p, min_p,
XTC, temperature, draw. The repeat penalty looks at the last 64 tokens of prompt and answer, as
llama.cpp does; presence and frequency look at the answer only, as OpenAI defines them. A grammar
(`constrain.py`) has banned its tokens before.

The row is llama.cpp's own buffer and is changed in place; nobody reads it afterwards. Whatever
narrows the choice first finds a superset cheaply (block maxima, a probability floor), so that no
sort ever runs over a vocabulary of 150,000.
"""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from edged.protocol import DEFAULTS, Sampling
from edged.worker.llamacpp.dry import Dry

Row = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

_REPEAT_WINDOW = 64
_BLOCK = 256
_BUCKETS_A_NAT = 64
_XTC_HIGHEST = 0.5  # threshold: above it no two tokens can be
_SMALLEST = 1e-6  # of what divides logits: anything less leaves the range of float32


class NoChoiceError(ValueError):
    """The row offers no token: the model computed no numbers, or all tokens are banned."""


class Sampler:
    """The choice of one generation; remembers its random state and its history."""

    def __init__(
        self,
        sampling: Sampling,
        *,
        prompt: list[int],
        ends: Iterable[int] = (),
        stops: Iterable[int] = (),
        suppressed: Iterable[int] = (),
        dry: Dry | None = None,
    ) -> None:
        """Take `ends`, the tokens banned by ignore_eos, and `suppressed`, those never wanted.

        `stops`: with `ends`, what ends the answer and is banned during its `min_tokens`.
        """
        said = sampling.over(DEFAULTS)
        self._temperature = max(said.temperature, _SMALLEST) if said.temperature else 0.0
        self._top_p = 1.0 if said.top_p is None else said.top_p
        self._top_k = said.top_k or 0
        self._min_p = math.log(said.min_p) if said.min_p else None
        self._typical_p = 1.0 if said.typical_p is None else said.typical_p
        self._repeat = 1.0 if said.repeat_penalty is None else max(said.repeat_penalty, _SMALLEST)
        self._presence = said.presence_penalty or 0.0
        self._frequency = said.frequency_penalty or 0.0
        self._random = random.Random(said.seed)  # noqa: S311 - dice, not secrets
        banned = {*suppressed, *(ends if said.ignore_eos else ())}
        bias = dict(said.logit_bias or {}) | dict.fromkeys(banned, -np.inf)
        self._n_unfinished = said.min_tokens or 0  # tokens for which the answer must go on
        self._ends = np.fromiter({*ends, *stops}, np.int64) if self._n_unfinished else None
        self._dry = dry
        self._xtc_probability = said.xtc_probability or 0.0
        self._xtc_threshold = said.xtc_threshold or 0.0
        self._xtc = self._xtc_probability > 0.0 and self._xtc_threshold <= _XTC_HIGHEST
        self._bias_ids = np.fromiter(bias.keys(), np.int64, len(bias))
        self._bias = np.fromiter(bias.values(), np.float32, len(bias))
        self._recent: deque[int] = deque(prompt[-_REPEAT_WINDOW:], maxlen=_REPEAT_WINDOW)
        self._answer: Counter[int] = Counter()

    @property
    def greedy(self) -> bool:
        """The likeliest token always."""
        return self._top_k == 1 or (self._temperature <= 0.0 and not self._xtc)

    def sample(self, row: Row) -> int:
        """Choose the next token; changes `row`. Raises NoChoiceError."""
        self._adjust(row)
        if not math.isfinite(row.max()):
            raise NoChoiceError
        token = int(row.argmax()) if self.greedy else self._draw(row)
        self.take(token)
        return token

    def take(self, token: int) -> None:
        """Remember the token that the answer goes on with, chosen here or not."""
        if self._repeat != 1.0:
            self._recent.append(token)
        if self._presence or self._frequency:
            self._answer[token] += 1
        if self._ends is not None:
            self._n_unfinished -= 1
            if self._n_unfinished <= 0:
                self._ends = None
        if self._dry is not None:
            self._dry.take(token)

    def _adjust(self, row: Row) -> None:
        if len(self._bias):
            row[self._bias_ids] += self._bias
        if self._repeat != 1.0 and self._recent:
            ids = np.fromiter(set(self._recent), np.int64)
            seen = row[ids]
            row[ids] = np.where(seen > 0, seen / self._repeat, seen * self._repeat)
        if self._answer:
            n = len(self._answer)
            ids = np.fromiter(self._answer.keys(), np.int64, n)
            counts = np.fromiter(self._answer.values(), np.float32, n)
            row[ids] -= counts * np.float32(self._frequency) + np.float32(self._presence)
        if self._ends is not None:
            row[self._ends] = -np.inf
        if self._dry is not None:
            self._dry.adjust(row)

    def _draw(self, row: Row) -> int:
        ids, logits = self._narrow(row)
        if self._temperature <= 0.0:
            at = int(logits.argmax())
            return at if ids is None else int(ids[at])
        weights = np.exp((logits - logits.max()) / np.float32(self._temperature))
        at = _pick(weights, self._random.random())
        return at if ids is None else int(ids[at])

    def _narrow(self, row: Row) -> tuple[Ids | None, Row]:
        """Return the tokens still in the game (None: all) and their logits."""
        ids: Ids | None = None
        logits = row
        if 0 < self._top_k < len(row):
            ids = largest(row, self._top_k)
            logits = row[ids]
        if self._typical_p < 1.0:
            kept = _typical(logits, self._typical_p)
            ids, logits = _take(ids, logits, kept)
        if self._top_p < 1.0:
            kept = _nucleus(logits, self._top_p)
            ids, logits = _take(ids, logits, kept)
        if self._min_p is not None:
            floor = logits.max() + np.float32(self._min_p)
            ids, logits = _take(ids, logits, np.flatnonzero(logits >= floor))
        if self._xtc and len(logits) > 1 and self._random.random() <= self._xtc_probability:
            ids, logits = _take(ids, logits, _without_top(logits, self._xtc_threshold))
        return ids, logits


def _take(ids: Ids | None, logits: Row, kept: Ids) -> tuple[Ids, Row]:
    return (kept if ids is None else ids[kept]), logits[kept]


def _pick(weights: Row, dice: float) -> int:
    """Return an index with the chance of its weight; `dice` in [0, 1).

    Sums whole blocks first: a running sum over a vocabulary costs more than its exponentials.
    """
    n_whole = len(weights) // _BLOCK * _BLOCK
    sums = weights[:n_whole].reshape(-1, _BLOCK).sum(axis=1, dtype=np.float64)
    tail = weights[n_whole:].sum(dtype=np.float64)
    borders = np.cumsum(np.append(sums, tail))
    point = dice * borders[-1]
    block = int(np.searchsorted(borders, point, side="right"))
    start = block * _BLOCK
    before = borders[block - 1] if block else 0.0
    inner = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64)
    at = start + int(np.searchsorted(inner, point - before, side="right"))
    if at < len(weights) and weights[at] > 0:
        return at
    return int(weights.argmax())  # rounding put the point behind the last weight


def largest(row: Row, k: int) -> Ids:
    """Return the indices of the `k` largest values, largest first."""
    n_blocks = len(row) // _BLOCK
    candidates: Ids
    if n_blocks > k:
        # The k-th largest block maximum is a floor below which no value can be among the k.
        maxima = row[: n_blocks * _BLOCK].reshape(n_blocks, _BLOCK).max(axis=1)
        floor = np.partition(maxima, n_blocks - k)[n_blocks - k]
        candidates = np.flatnonzero(row >= floor)
    else:
        candidates = np.argpartition(row, len(row) - k)[len(row) - k :]
    order = np.argsort(-row[candidates], kind="stable")[:k]
    return candidates[order]


def _nucleus(logits: Row, top_p: float) -> Ids:
    """Return the smallest set of the likeliest whose probabilities reach `top_p`; at least one."""
    below = logits.max() - logits
    weights = np.exp(-below)
    total = float(weights.sum(dtype=np.float64))
    # Everything below this floor together weighs less than 1 - top_p: outside the nucleus.
    candidates = np.flatnonzero(weights >= (1.0 - top_p) * total / len(weights))
    return candidates[_first(below[candidates], weights[candidates], top_p * total)]


def _typical(logits: Row, typical_p: float) -> Ids:
    """Return those whose surprise is closest to the expected one, up to `typical_p` in all."""
    below = logits.max() - logits
    weights = np.exp(-below)
    candidates = np.flatnonzero(weights)  # a banned token's endless surprise would make it NaN
    below, weights = below[candidates], weights[candidates]
    total = float(weights.sum(dtype=np.float64))
    # Surprise is `below` plus a constant, which falls out of the distance to its own mean.
    expected = np.float32((weights * below).sum(dtype=np.float64) / total)
    return candidates[_first(np.abs(below - expected), weights, typical_p * total)]


def _without_top(logits: Row, threshold: float) -> Ids:
    """Return all but the likeliest ones, as long as one above `threshold` is left (XTC)."""
    weights = np.exp(logits - logits.max())
    chances = weights / np.float32(weights.sum(dtype=np.float64))
    above = np.flatnonzero((chances >= threshold) & (chances > 0))  # never down to a banned one
    if len(above) < 2:  # noqa: PLR2004 - the last of them stays
        return np.arange(len(logits))
    above = above[np.argsort(-chances[above], kind="stable")]
    kept = np.ones(len(logits), np.bool_)
    kept[above[:-1]] = False
    return np.flatnonzero(kept)


def _first(distance: Row, weights: Row, wanted: float) -> Ids:
    """Return the nearest by `distance`, as few as weigh `wanted` together; the farthest last.

    Buckets of similar distance are summed first, so that only the bucket on the border is sorted.
    """
    buckets = (distance * np.float32(_BUCKETS_A_NAT)).astype(np.int64)
    reached = np.cumsum(np.bincount(buckets, weights))
    border = min(int(np.searchsorted(reached, wanted)), len(reached) - 1)
    inside = np.flatnonzero(buckets < border)
    on_it = np.flatnonzero(buckets == border)
    on_it = on_it[np.argsort(distance[on_it], kind="stable")]
    missing = wanted - (reached[border - 1] if border else 0.0)
    n = int(np.searchsorted(np.cumsum(weights[on_it], dtype=np.float64), missing)) + 1
    return np.concatenate([inside, on_it[:n]])
