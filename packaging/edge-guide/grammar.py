"""A tiny phrase grammar: `{add|install} {a|another} model[ please]` → every wording."""

import hashlib
import random
import re

_CHOICE = re.compile(r"\{([^{}]*)\}|\[([^\[\]]*)\]")


def sample(pattern: str, rng: random.Random) -> str:
    """One random wording: `{a|b}` is a choice, `[x]` is there half of the time; both nest."""

    def pick(match: re.Match[str]) -> str:
        if match.group(1) is not None:
            return rng.choice(match.group(1).split("|"))
        return rng.choice(match.group(2).split("|")) if rng.random() < 0.5 else ""

    while True:
        text = _CHOICE.sub(pick, pattern)
        if text == pattern:
            return re.sub(r" {2,}", " ", text).strip()
        pattern = text


def held_out(text: str, share: int = 10) -> bool:
    """Whether a wording is kept for the evaluation: one in `share`, by its letters alone."""
    letters = "".join(c for c in text.lower() if c.isalnum())
    return hashlib.sha256(letters.encode()).digest()[0] % share == 0
