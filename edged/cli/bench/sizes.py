"""How much to ask for, so that one measurement takes the time that it has. Pure.

Rates are tokens (or inputs) per second as far as they are known, windows are s.
"""

from __future__ import annotations

ROUNDS = 3
SHORT_PROMPT = 16  # words
FIRST_ANSWER = 16  # tokens of the one that tells how fast the model is
END = 16  # words, of a long prompt, that are others the second time
LEAST_CONTEXT = 256  # tokens; below, prompt and answer leave nothing to measure

_CLIENTS = (1, 2, 4, 8)
_LEAST_ANSWER, _MOST_ANSWER = 8, 512  # tokens
_LEAST_PROMPT, _MOST_PROMPT = 64, 4096  # tokens
_MOST_INPUTS = 16
_PROMPT_SHARE = 0.3  # of a round, both requests


def clients(wanted: tuple[int, ...], parallel: int) -> tuple[int, ...]:
    """Return how many clients to measure, in order: `wanted`, else what `parallel` allows."""
    most = min(parallel, _CLIENTS[-1])
    return tuple(sorted(set(wanted) or {n for n in _CLIENTS if n < most} | {most}))


def n_steps(n_counts: int) -> int:
    """Return how many measurements there are: one to try, then each in every round."""
    return 1 + ROUNDS * (1 + n_counts)


def windows_s(seconds: float, n_counts: int) -> tuple[float, float]:
    """Return the time of the long prompt and of each count of clients in one round."""
    round_s = seconds / (ROUNDS + 0.5)  # the half: trying out what to ask for
    return round_s * _PROMPT_SHARE, round_s * (1 - _PROMPT_SHARE) / n_counts


def answer_tokens(rate_each: float, window_s: float, context: int) -> int:
    """Return how long each client's answer shall be."""
    most = min(_MOST_ANSWER, context // 2)
    return max(_LEAST_ANSWER, min(int(rate_each * window_s), most))


def prompt_tokens(rate: float, window_s: float, context: int) -> int:
    """Return how long the long prompt shall be; words are not tokens, so there is a margin."""
    most = min(_MOST_PROMPT, int(context * 0.8))
    return max(_LEAST_PROMPT, min(int(rate * window_s), most))


def words(n_tokens: int, tokens_per_word: float) -> int:
    """Return how many words make about so many tokens; an `END` and some more at least."""
    return max(2 * END, round(n_tokens / tokens_per_word))


def inputs_each(input_s: float, window_s: float) -> int:
    """Return how many inputs a request shall have: some requests have to fit into the window."""
    return max(1, min(int(window_s / (4 * input_s)), _MOST_INPUTS))
