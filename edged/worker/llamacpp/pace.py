"""How many prompt tokens fit beside running streams without stalling them.

Pure. A step with decodes should take about `TARGET_S`, or twice what its decodes alone take where
that is longer: on a slow or busy box prefill gets half of the time, not the crumbs. What a prompt
token costs on this box is learned from the steps themselves.
"""

from __future__ import annotations

TARGET_S = 0.1
TOGETHER_S = 1.0  # beside streams that began with those whose prompts are read
_FIRST_GUESS_S = 0.002  # a prompt token, until the first one was measured
_FEWEST = 8  # prompt tokens a step, however slow the box: prefill never stands still
_WEIGHT = 0.2  # of the newest measurement


class Pace:
    """Moving averages of what decodes and prompt tokens cost, in s."""

    def __init__(self) -> None:
        self.step_s = 0.0
        self._decode_s = 0.0  # a step of decodes only
        self._token_s = _FIRST_GUESS_S

    def observe(self, *, decodes: int, prompt_tokens: int, seconds: float) -> None:
        """Learn from a finished step."""
        self.step_s = _mix(self.step_s, seconds)
        if prompt_tokens == 0:
            self._decode_s = _mix(self._decode_s, seconds)
        elif prompt_tokens >= _FEWEST:
            rest = max(seconds - (self._decode_s if decodes else 0.0), seconds * 0.1)
            self._token_s = _mix(self._token_s, rest / prompt_tokens)

    def prompt_tokens(self, target_s: float = TARGET_S) -> int:
        """Prompt tokens that a step with decodes can carry."""
        spare_s = max(target_s - self._decode_s, self._decode_s)
        return max(_FEWEST, int(spare_s / self._token_s))


def _mix(old: float, new: float) -> float:
    return new if old == 0.0 else old + _WEIGHT * (new - old)
