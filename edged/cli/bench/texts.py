"""Prompts that no cache has seen: common words in an order of their own, behind a random number."""

from __future__ import annotations

import secrets

_TEXT = """
able about above across after again air all almost along animal answer apple arm army arrive art
ask baby back bag ball bank basket bath beautiful bed bell below bird bite black blue board boat
body bone book bottle box boy branch bread breath bridge bright bring brother brown brush build
burn business butter button buy cake call camera camp card care carry case cat chain chair
chance change cheese chief child church circle city clean clear clock cloth cloud coal coat
coffee cold color comfort company compare complete condition connect cook copper copy corner
cotton country course cover cup current curtain curve damage danger dark daughter day dear
decide deep desert design desire detail dinner direction discover distance doctor dog door doubt
down draw dream dress drink drive drop dust ear early earth east edge
"""
_WORDS = _TEXT.split()
_SENTENCE = 12  # words


def unique(n_words: int) -> str:
    """Return a text of so many words (at least one) as nobody else has sent one."""
    words = [str(secrets.randbelow(10**6)), *(secrets.choice(_WORDS) for _ in range(1, n_words))]
    for i in range(_SENTENCE - 1, len(words), _SENTENCE):
        words[i] += "."
    return " ".join(words)
