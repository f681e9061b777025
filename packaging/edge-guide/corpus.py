"""The endless, seeded stream of conversations that edge-guide learns from."""

# ruff: noqa: PLR2004, S311 - shares of a mix, drawn from a seeded generator

import random
from collections.abc import Iterator

import tools
from render import Example


def training(seed: int) -> Iterator[Example]:
    """Conversations for training; wordings and names kept for the evaluation never occur."""
    rng = random.Random(seed)
    while True:
        if rng.random() < 0.15:
            yield tools.result_example(rng)
        else:
            yield tools.call_example(rng)[0]
