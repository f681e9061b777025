"""`:auto`: the largest quantisation that fits with room for the context, and why."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from edged.config import Model, Source
from edged.errors import StoreError
from edged.plan.quantisation import NothingFitsError, Quantisation, best
from edged.store.gguf import read_header
from tests.hub import Hub
from tests.models.tiny import tiny
from tests.pull.support import REPOSITORY, configuration, pull, weights

GIB = 1 << 30
SIZES = [
    Quantisation("F16", 16 * GIB),
    Quantisation("Q8_0", 8 * GIB),
    Quantisation("Q4_K_M", 4 * GIB),
]
MODEL = Model("m", Source("hf", "a/b:auto"), context=1024, parallel=1)


def chosen(gib: float, model: Model = MODEL) -> tuple[str, str]:
    place, why = best(SIZES, read_header(tiny("plain")), model, int(gib * GIB))
    return SIZES[place].tag, why


def test_the_largest_that_fits_is_taken_but_no_floats() -> None:
    assert chosen(100)[0] == "Q8_0"
    assert chosen(9)[0] == "Q8_0"
    assert chosen(8)[0] == "Q4_K_M"


def test_it_says_why_and_what_the_next_would_need() -> None:
    why = chosen(8)[1]
    assert why.startswith("Q4_K_M is the best of 3 quantisations that fits: 4.")
    assert "with 1 × 1024 tokens, of 8 GiB for models; Q8_0 would need 8." in why  # noqa: RUF001


def test_the_context_needs_its_room() -> None:
    assert chosen(8.2)[0] == "Q8_0"
    # 256 requests of 4096 tokens: 0.5 GiB of KV for this tiny model
    assert chosen(8.2, replace(MODEL, context=4096, parallel=256))[0] == "Q4_K_M"


def test_nothing_fits() -> None:
    with pytest.raises(NothingFitsError, match=r"Q4_K_M, the smallest, needs 4.* allows 3 GiB"):
        chosen(3)


def test_floats_are_taken_where_there_is_nothing_else() -> None:
    only = [Quantisation("BF16", GIB)]
    assert best(only, read_header(tiny("plain")), MODEL, 4 * GIB)[0] == 0


def test_it_is_chosen_from_the_header_on_the_server_and_locked(hub: Hub, tmp_path: Path) -> None:
    sizes = {"Q8_0": 40_000, "Q6_K": 20_000, "Q4_K_M": 64, "F16": 30}
    hub.add(REPOSITORY, {f"M-{tag}.gguf": weights(tag, kib) for tag, kib in sizes.items()})
    loaded = configuration(tmp_path, f"hf:{REPOSITORY}:auto", "context = 256\nparallel = 1")
    # what is not the weights takes some 66 MiB of process, KV and scratch
    entry = pull(loaded, gib=0.125)
    assert entry.chosen == "Q6_K"
    assert entry.why
    assert "Q8_0 would need" in entry.why
    ranges = [request.headers.get("range") for request in hub.bodies()]
    assert ranges[0] == "bytes=0-" + str(len(weights("F16", 30)) - 1)
    assert len(hub.bodies()) == 2


def test_no_room_at_all_is_a_reason(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {"M-Q8_0.gguf": weights("Q8_0", 64)})
    loaded = configuration(tmp_path, f"hf:{REPOSITORY}:auto")
    with pytest.raises(StoreError, match="none of its 1 quantisations fits: Q8_0"):
        pull(loaded, gib=0.05)
    assert [request.headers.get("range") is not None for request in hub.bodies()] == [True]
