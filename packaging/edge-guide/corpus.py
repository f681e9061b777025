"""The endless, seeded stream of conversations that edge-guide learns from."""

import random
from collections.abc import Iterator

import dialogue
import tools
from render import Example


def one(rng: random.Random, singles: float = 0.0) -> Example:
    """A conversation for training; wordings and names kept for the evaluation never occur.

    `singles` of them are single questions, beside those among the others.
    """
    if singles and rng.random() < singles:
        return dialogue.single(rng)
    kind = rng.random()
    if kind < 0.42:
        return dialogue.single(rng)
    if kind < 0.58:
        return dialogue.conversation(rng, zh=rng.random() < 0.4)
    if kind < 0.64:  # tools at hand, but not needed
        example = dialogue.single(rng)
        example.kind = "tools_unused"
        example.tools = tools.call_example(rng)[0].tools
        return example
    example = tools.result_example(rng) if kind < 0.69 else tools.call_example(rng)[0]
    zh = any("\u4e00" <= c <= "\u9fff" for c in example.messages[0]["content"])
    return dialogue.finish(rng, example, tools.thought(example, zh=zh), think=0.06)


def training(seed: int, singles: float = 0.0) -> Iterator[Example]:
    """Conversations without end."""
    rng = random.Random(seed)
    while True:
        yield one(rng, singles)
