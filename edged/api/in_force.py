"""What is in force, short enough to compare: `edged check` tells from it what would change."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec
from msgspec import Struct

from edged.plan import Diff, Plan


class InForce(Struct, frozen=True):
    """Checksums of the plan in force; `launches` has "" for a model that has no worker."""

    server: str
    launches: dict[str, str]
    models: dict[str, str]


def of(plan: Plan) -> InForce:
    """Return the checksums of `plan`."""
    return InForce(
        server=_checksum(plan.config.server),
        launches={
            name: _checksum(model.launch) if model.launch else ""
            for name, model in plan.models.items()
        },
        models={
            name: _checksum((model.model, model.adapters)) for name, model in plan.models.items()
        },
    )


def diff(old: InForce, new: InForce) -> Diff:
    """Return what going from `old` to `new` does, as `plan.diff` would."""
    both = [name for name in new.models if name in old.models]
    replaced = tuple(n for n in both if old.launches.get(n) != new.launches[n])
    same = [n for n in both if n not in replaced]
    return Diff(
        added=tuple(n for n in new.models if n not in old.models),
        removed=tuple(n for n in old.models if n not in new.models),
        replaced=replaced,
        updated=tuple(n for n in same if old.models[n] != new.models[n]),
        unchanged=tuple(n for n in same if old.models[n] == new.models[n]),
        server=old.server != new.server,
    )


def _checksum(value: Any) -> str:
    return f"{zlib.crc32(msgspec.json.encode(value)):08x}"
