"""Which LoRA adapters a request asks for: by its model's name, or by its `lora` field."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from edged import errors
from edged.api.entry import Entry
from edged.config.values import suggestion
from edged.plan import AdapterPlan
from edged.protocol import Generate

Scale = Annotated[float, Meta(ge=-100.0, le=100.0)]
Name = Annotated[str, Meta(min_length=1, max_length=512)]


class LoraUse(Struct, kw_only=True):
    """One entry of `lora`: an adapter by `name`, or by `id` as llama-server has it.

    A whole number as `id` counts the model's adapters from 0, in the order of models.toml.
    """

    name: Name | None = None
    id: int | Name | None = None
    scale: Scale | None = None


Lora = Name | Annotated[list[LoraUse | Name], Meta(max_length=16)]


def dressed(entry: Entry, generate: Generate, lora: Lora | None) -> Generate:
    """Return the request with the adapters that it is to run with.

    Raises InvalidRequest for an unknown or repeated one, AdapterFailed for one that cannot be used.
    """
    if entry.plan.launch is None:  # it cannot run at all, and whoever runs it says why
        return generate
    uses: dict[str, float] = {}
    if entry.adapter is not None:
        found = _find(entry, entry.adapter, "model")
        uses[found.name] = found.scale
    for each in [lora] if isinstance(lora, str) else lora or []:
        use = LoraUse(name=each) if isinstance(each, str) else each
        if (use.name is None) == (use.id is None):
            raise errors.InvalidRequest(
                "`lora`: each entry names one adapter, by `name` or by `id`", param="lora"
            )
        found = _find(entry, use.id if use.name is None else use.name, "lora")
        if found.name in uses:
            raise errors.InvalidRequest(f"`lora`: {found.name!r} is named twice", param="lora")
        uses[found.name] = found.scale if use.scale is None else use.scale
    if not uses:
        return generate
    return msgspec.structs.replace(generate, adapters=tuple(uses.items()))


def _find(entry: Entry, wanted: str | int | None, param: str) -> AdapterPlan:
    adapters = entry.plan.adapters
    names = [adapter.name for adapter in adapters]
    at = wanted
    if isinstance(wanted, str):
        # in full, as /v1/models lists them, or the name alone
        short = wanted.removeprefix(f"{entry.model}:")
        at = names.index(short) if short in names else None
    if not isinstance(at, int) or not 0 <= at < len(names):
        there = ", ".join(names) or "none"
        hint = suggestion(wanted, names)
        raise errors.InvalidRequest(
            f"`{param}`: model {entry.model!r} has no adapter {wanted!r}{hint}; it has: {there}",
            param=param,
        )
    if (refusal := adapters[at].refusal) is not None:
        raise errors.AdapterFailed(
            f"adapter {names[at]!r} of {entry.model!r} cannot be used: {refusal}", param=param
        )
    return adapters[at]
