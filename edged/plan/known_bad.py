"""Combinations of LMDeploy's features that are known to go wrong, and what edged does about them.

Each row names the thread of LMDeploy's tracker that tells of it. A row leaves when a release is
known to have mended it and `make test-gpu` has shown so.
"""

from __future__ import annotations

from msgspec import Struct


class Combination(Struct, frozen=True):
    """One row. `consequence` ends the sentence "…, so …" that the plan gives as a reason."""

    what: str
    threads: tuple[str, ...]
    consequence: str

    @property
    def reason(self) -> str:
        """The row as a reason of the plan."""
        return f"{self.what} is known to go wrong ({', '.join(self.threads)}): {self.consequence}"


PREFIXES_WITH_SMALL_KV = Combination(
    "a shared prefix in a KV cache of 4 or 8 bits under load",
    ("InternLM/lmdeploy#1744",),
    "prefixes are not shared; leave lmdeploy.quant_policy out to share them",
)
GRAMMARS_ON_SEVERAL_GPUS = Combination(
    "guided decoding on several GPUs",
    ("InternLM/lmdeploy#4266", "InternLM/lmdeploy#4152", "InternLM/lmdeploy#2771"),
    "requests with a response format or a demanded tool call are refused; on one GPU they are not",
)
IMAGES_ON_SEVERAL_GPUS = Combination(
    "a model with images on several GPUs",
    ("InternLM/lmdeploy#4053", "InternLM/lmdeploy#3842", "InternLM/lmdeploy#2691"),
    "it stalls after hours, so one GPU is used; lmdeploy.tp overrules that",
)
TABLE = (PREFIXES_WITH_SMALL_KV, GRAMMARS_ON_SEVERAL_GPUS, IMAGES_ON_SEVERAL_GPUS)


def of(*, tp: int, kv_bits: int, reads_images: bool) -> tuple[Combination, ...]:
    """Return the rows that a model with these settings meets."""
    meets = {
        PREFIXES_WITH_SMALL_KV: bool(kv_bits),
        GRAMMARS_ON_SEVERAL_GPUS: tp > 1,
        IMAGES_ON_SEVERAL_GPUS: tp > 1 and reads_images,
    }
    return tuple(row for row in TABLE if meets[row])
