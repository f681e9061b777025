"""What `edged check` says of changed models: beside the old worker, or after it."""

from __future__ import annotations

from edged.cli.check import _compare
from edged.plan import diff
from tests.daemon.support import box, model

MB = 1 << 20


def test_replaced_models_are_told_apart_by_the_room_beside_them() -> None:
    old = box(
        model("small", mb=10), model("big", mb=60), model("idle", mb=60), model("gone", mb=20)
    )
    new = box(
        model("small", "new", mb=10),
        model("big", "new", mb=60),
        model("idle", "new", mb=60),
        budget_mb=120,
    )
    held = {"small": 10 * MB, "big": 60 * MB, "gone": 20 * MB}
    found = _compare(new, diff(old, new), held)
    assert found.beside == ("small",)
    assert found.after_stop == ("big",)
    assert found.held_bytes == 90 * MB
    assert found.held_after_bytes == 70 * MB


def test_refused_model_keeps_what_it_has() -> None:
    old, new = box(model("m", mb=10)), box(model("m", refusal="no file", mb=10))
    found = _compare(new, diff(old, new), {"m": 10 * MB})
    assert found.held_bytes == found.held_after_bytes == 10 * MB
    assert not found.beside
