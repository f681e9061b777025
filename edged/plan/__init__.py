"""(Config, Hardware) → Plan: for each model the engine, files, memory and the reasons.

Nothing is started and nothing changed: `make` reads model files' headers, the rest is pure.
"""

from __future__ import annotations

from msgspec import Struct

from edged.config import Config
from edged.config.values import suggestion
from edged.errors import ModelNotFound
from edged.hardware import Hardware
from edged.plan.adapters import AdapterPlan
from edged.plan.choice import Choice
from edged.plan.estimate import MemoryEstimate
from edged.plan.model import ModelFile, ModelPlan, budget_bytes
from edged.plan.places import MAIN, gpu
from edged.plan.vram import Room, usable_bytes

__all__ = [
    "AdapterPlan",
    "Diff",
    "MemoryEstimate",
    "ModelFile",
    "ModelPlan",
    "Plan",
    "diff",
    "make",
]


class Plan(Struct, frozen=True):
    """All models.

    `names` maps every name and alias, also those of adapters, to its model's name; `adapters` maps
    those of adapters to the adapter's name.
    """

    config: Config
    hardware: Hardware
    models: dict[str, ModelPlan]
    names: dict[str, str]
    adapters: dict[str, str] = {}

    @property
    def budget_bytes(self) -> int:
        """Main memory that all workers together may take."""
        return budget_bytes(self.config, self.hardware)

    @property
    def budgets(self) -> dict[str, int]:
        """The same, and that of each GPU whose driver tells what is taken, by place."""
        gpus = [each for each in self.hardware.gpus if each.via == "nvml"]
        return {MAIN: self.budget_bytes} | {gpu(each.index): usable_bytes(each) for each in gpus}

    def resolve(self, name: str) -> ModelPlan:
        """Return the model that has this name or alias; raises ModelNotFound with what exists."""
        if name not in self.names:
            base, _, adapter = name.rpartition(":")
            if base in self.names and (own := self.models[self.names[base]].adapters):
                has = ", ".join(each.name for each in own)
                raise ModelNotFound(f"model {base!r} has no adapter {adapter!r}; it has: {has}")
            there = ", ".join(self.models) or "none: models.toml has no [models.NAME] yet"
            near = suggestion(name, self.names).removeprefix("; ")
            hint = f" ({near})" if near else ""
            raise ModelNotFound(f"no model is called {name[:100]!r}{hint}; there are: {there}")
        return self.models[self.names[name]]


class Diff(Struct, frozen=True):
    """How two plans differ, as model names in the order of the file.

    replaced: launch or engine differs; a launch of None counts too, for a model that is refused
    now or was before. updated: only the rest differs. server: `[server]` differs.
    """

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    updated: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    server: bool = False


def make(config: Config, hardware: Hardware) -> Plan:
    """Decide for every model; a model that cannot run carries its refusal, nothing is raised."""
    names: dict[str, str] = {}
    for name, model in config.models.items():
        names |= dict.fromkeys((name, *model.aliases), name)
    adapters: dict[str, str] = {}
    for name, model in config.models.items():
        for adapter in model.llamacpp.lora:
            called = [f"{base}:{adapter.name}" for base in (name, *model.aliases)]
            for each in (*called, *adapter.aliases):
                if each not in names:  # "alias:adapter" may be a model's own name
                    names[each] = name
                    adapters[each] = adapter.name
    room = Room(hardware.gpus)
    models = {
        name: Choice(model, config, hardware, room).plan() for name, model in config.models.items()
    }
    return Plan(config=config, hardware=hardware, models=models, names=names, adapters=adapters)


def diff(old: Plan | None, new: Plan) -> Diff:
    """Compare two plans; None is the plan before the first."""
    before = old.models if old else {}
    kinds: dict[str, list[str]] = {"added": [], "replaced": [], "updated": [], "unchanged": []}
    for name, plan in new.models.items():
        kinds[_kind(before.get(name), plan)].append(name)
    return Diff(
        removed=tuple(name for name in before if name not in new.models),
        server=old is None or old.config.server != new.config.server,
        **{kind: tuple(names) for kind, names in kinds.items()},
    )


def _kind(old: ModelPlan | None, new: ModelPlan) -> str:
    if old is None:
        return "added"
    if (old.launch, old.engine) != (new.launch, new.engine):
        return "replaced"
    return "unchanged" if old == new else "updated"
