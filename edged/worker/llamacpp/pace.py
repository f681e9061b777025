"""How many prompt tokens fit beside running streams without stalling them.

Pure. A step with decodes should take about `TARGET_S`, or 1.4 times what its decodes alone take
where that is longer: on a slow or busy box prefill gets a share of the time, not the crumbs. What
a prompt token costs is learned from the steps themselves, beside streams and alone apart: a few
tokens cost up to three times as much each as those of a whole batch. A price that rises is
believed sooner than one that falls, since a step that is too long shows and one too short does not.
"""

from __future__ import annotations

TARGET_S = 0.1
TOGETHER_S = 1.0  # beside streams that began with those whose prompts are read
_FIRST_GUESS_S = 0.002  # a prompt token, until the first one was measured
_FEWER = 1.5  # times the price of a whole batch's token, until one beside streams was measured
_SHARE = 0.4  # of the time of the decodes, on a box where these alone take the target
_FEWEST = 4  # prompt tokens a step, however slow the box: prefill never stands still
_MANY = 64  # prompt tokens from which on a step beside streams costs what whole batches do
_RISING, _FALLING = 0.4, 0.1  # weight of the newest measurement


class Pace:
    """Moving averages of what decodes and prompt tokens cost, in s."""

    def __init__(self) -> None:
        self.step_s = 0.0
        self._decode_s = 0.0  # a step of decodes only
        self._token_s = 0.0  # of many
        self._beside_s = 0.0  # of few, beside streams

    def observe(self, *, decodes: int, prompt_tokens: int, seconds: float) -> None:
        """Learn from a finished step."""
        self.step_s = _mix(self.step_s, seconds)
        if prompt_tokens == 0:
            self._decode_s = _mix(self._decode_s, seconds)
            return
        if prompt_tokens < _FEWEST:
            return
        rest_s = max(seconds - (self._decode_s if decodes else 0.0), seconds * 0.1)
        if decodes and prompt_tokens < _MANY:
            self._beside_s = _mix(self._beside_s, rest_s / prompt_tokens)
        else:
            self._token_s = _mix(self._token_s or _FIRST_GUESS_S, rest_s / prompt_tokens)

    def prompt_tokens(self, target_s: float = TARGET_S) -> int:
        """Prompt tokens that a step with decodes can carry."""
        spare_s = max(target_s - self._decode_s, _SHARE * self._decode_s)
        many = int(spare_s / self._token_s) if self._token_s else 0
        if many >= _MANY:
            return many
        few = int(spare_s / (self._beside_s or _FEWER * (self._token_s or _FIRST_GUESS_S)))
        return max(_FEWEST, min(few, _MANY))


def _mix(old: float, new: float) -> float:
    return new if old == 0.0 else old + (_RISING if new > old else _FALLING) * (new - old)
