"""What `edged check` says of changed models: beside the old worker, or after it."""

from __future__ import annotations

from edged.cli.check import _compare
from edged.hardware.gpu import Gpu
from edged.plan import diff
from edged.plan.places import MAIN, gpu
from tests.daemon.support import box, model, on_gpu

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
    held = {name: {MAIN: mb * MB} for name, mb in (("small", 10), ("big", 60), ("gone", 20))}
    found = _compare(new, diff(old, new), held)
    assert found.beside == ("small",)
    assert found.after_stop == ("big",)
    assert found.held_bytes == 90 * MB
    assert found.held_after_bytes == 70 * MB


def test_refused_model_keeps_what_it_has() -> None:
    old, new = box(model("m", mb=10)), box(model("m", refusal="no file", mb=10))
    found = _compare(new, diff(old, new), {"m": {MAIN: 10 * MB}})
    assert found.held_bytes == found.held_after_bytes == 10 * MB
    assert not found.beside


def test_model_on_a_gpu_is_replaced_beside_itself_only_where_the_gpu_has_room() -> None:
    card = Gpu(0, "RTX A", 24 << 30, 24 << 30)
    old = box(on_gpu("roomy"), on_gpu("tight"), gpus=(card,))
    new = box(on_gpu("roomy", gib=3, context=64), on_gpu("tight", context=64), gpus=(card,))
    held = {name: {MAIN: MB, gpu(0): 10 << 30} for name in ("roomy", "tight")}
    found = _compare(new, diff(old, new), held)
    assert (found.beside, found.after_stop) == (("roomy",), ("tight",))
