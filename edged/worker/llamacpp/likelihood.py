"""How likely a token was: the logarithm of its probability, for those who ask.

As llama-server and OpenAI tell it: of the model's own distribution, before temperature, penalties,
bias, grammar and whatever else narrows the choice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edged.protocol import Chosen, Likelihood
from edged.worker.llamacpp.sampling import Row, largest

_LOWEST = -9999.0  # JSON knows no infinity; OpenAI says this for what is all but impossible


def chosen(row: Row, token: int, top: int, spelling: Callable[[int], bytes]) -> Chosen:
    """Return the likelihood of `token` in a row as the model wrote it, beside the `top` best."""
    highest = float(row.max())
    total = highest + float(np.log(np.exp(row - highest).sum(dtype=np.float64)))
    return Chosen(
        token,
        spelling(token),
        _of(row, token, total),
        [Likelihood(i, spelling(i), _of(row, i, total)) for i in largest(row, top).tolist()]
        if top
        else [],
    )


def _of(row: Row, token: int, total: float) -> float:
    return max(float(row[token]) - total, _LOWEST)
