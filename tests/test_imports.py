"""Imports point down only. The table is data; the code is read as text, nothing is imported."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "edged").rglob("*.py"))

GROUND = {
    "edged",
    "edged.protocol",
    "edged.redaction",
    "edged.framing",
    "edged.errors",
    "edged.log",
    "edged.journal",
    "edged.atomic",
    "edged.wake",
    "edged.doubling",
    "edged.heap",
}
FACTS = GROUND | {"edged.config", "edged.hardware", "edged.status"}

# Room → what it may import of edged (a room may always import itself). A room is a module, or a
# package with all below it; the longest match of a module's name is its room.
MAY_IMPORT = {
    # the ground: both processes stand on it
    "edged": set(),
    "edged.errors": set(),
    "edged.atomic": set(),
    "edged.wake": set(),
    "edged.doubling": set(),
    "edged.heap": set(),
    "edged.log": {"edged.journal", "edged.redaction"},
    "edged.redaction": set(),
    "edged.journal": set(),
    "edged.protocol": {"edged.errors"},
    "edged.framing": {"edged.protocol"},
    # the parent, from facts to the command line
    "edged.config": GROUND,
    "edged.hardware": GROUND | {"edged.config", "edged.store.folders"},
    "edged.status": {"edged.protocol", "edged.hardware"},
    "edged.store": FACTS,
    "edged.store.folders": set(),
    "edged.store.ageing": set(),
    "edged.store.responses": GROUND | {"edged.store.ageing"},
    "edged.plan": FACTS | {"edged.store"},
    "edged.cuda": FACTS | {"edged.atomic", "edged.plan"},
    "edged.pull": FACTS | {"edged.plan", "edged.store"},
    "edged.supervisor": FACTS | {"edged.plan"},
    "edged.metrics": FACTS,
    "edged.auth": GROUND | {"edged.config"},
    "edged.limits": GROUND | {"edged.auth"},
    "edged.api": FACTS
    | {"edged.plan", "edged.metrics", "edged.store.responses", "edged.auth", "edged.limits"},
    "edged.daemon": FACTS
    | {"edged.plan", "edged.pull", "edged.store", "edged.supervisor", "edged.metrics"}
    | {"edged.api", "edged.auth"},
    "edged.cli": FACTS
    | {"edged.plan", "edged.pull", "edged.store", "edged.api", "edged.daemon", "edged.auth"}
    | {"edged.cuda"},
    "edged.__main__": {"edged.cli"},
    # how `edged bench` counts, says and draws
    "edged.cli.models": FACTS | {"edged.plan", "edged.store", "edged.cli", "edged.worker.output"},
    "edged.cli.bench.answer": set(),
    "edged.cli.bench.chart": set(),
    "edged.cli.bench.figures": FACTS | {"edged.cli.bench.answer"},
    "edged.cli.bench.sizes": set(),
    "edged.cli.bench.texts": set(),
    "edged.cli.bench.wording": {"edged.cli.bench.figures"},
    # pure decisions inside rooms that have effects
    "edged.config.lines": set(),
    "edged.hardware.cgroup": set(),
    "edged.hardware.gpu": set(),
    "edged.hardware.nvml": {"edged.hardware.gpu"},
    "edged.hardware.cuda": set(),
    "edged.plan.estimate": FACTS | {"edged.store"},
    "edged.plan.known_bad": set(),
    "edged.plan.places": set(),
    "edged.supervisor.lifecycle": GROUND,
    "edged.supervisor.footprint": set(),
    "edged.supervisor.memory": GROUND
    | {"edged.config", "edged.plan.places", "edged.supervisor.lifecycle"},
    "edged.supervisor.poison": GROUND,
    "edged.supervisor.succession": GROUND | {"edged.plan", "edged.supervisor.lifecycle"},
    # systemd's manners and the file watch know nothing of models
    "edged.daemon.systemd": GROUND,
    "edged.daemon.watch": GROUND,
    "edged.daemon.telling": GROUND | {"edged.daemon.systemd", "edged.status"},
    "edged.daemon.lag": set(),
    "edged.daemon.surroundings": GROUND | {"edged.config", "edged.hardware"},
    "edged.daemon.mdns": GROUND | {"edged.config", "edged.api"},
    "edged.daemon.listeners": GROUND | {"edged.config", "edged.daemon.systemd"},
    "edged.daemon.certificates": {"edged.atomic"},
    "edged.daemon.tls": GROUND
    | {"edged.config", "edged.daemon.certificates", "edged.daemon.listeners"}
    | {"edged.daemon.watch"},
    # the child
    "edged.worker": GROUND | {"edged.store.folders"},
    "edged.worker.output": GROUND,  # pure text; `edged models` asks it for the name of a format
}

# Native code and heavy libraries: where each may be imported, and nowhere else.
ONLY_IN = {
    "llama_cpp": {"edged/worker/llamacpp/library.py", "edged/worker/llamacpp/multimodal.py"},
    "lmdeploy": {"edged/worker/lmdeploy/library.py"},
    "torch": {"edged/worker/lmdeploy/library.py"},
    "tokenizers": {
        "edged/worker/lmdeploy/vocabulary.py",
        "edged/worker/lmdeploy/random_model.py",
    },
    "gguf": set(),
    "PIL": {"edged/api/image_file.py", "edged/worker/lmdeploy/images.py"},
}
WORKER_ONLY = {"numpy", "jinja2", "llguidance"}
PURE = [
    "threads",
    "scheduler",
    "step",
    "pool",
    "cells",
    "pace",
    "prefixes",
    "sequence",
    "packing",
    "lookup",
    "wager",
    "turns",
]


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module that the file imports, functions and TYPE_CHECKING blocks included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {n if is_module(n) else str(node.module) for n in names}
    return found


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def room(module: str) -> str:
    while module not in MAY_IMPORT:
        assert "." in module, f"{module} belongs to no room of the table"
        module = module.rpartition(".")[0]
    return module


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_point_down(path: Path) -> None:
    own = room(module_name(path))
    for name in imports(path):
        used = room(name) if name.split(".")[0] == "edged" else own
        inside = (used + ".").startswith(own + ".")
        known = any((used + ".").startswith(may + ".") for may in MAY_IMPORT[own] - {"edged"})
        assert inside or known or used in MAY_IMPORT[own], f"{own} may not import {name}"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_native_code_stays_in_its_file(path: Path) -> None:
    where = str(path.relative_to(ROOT))
    for name in {name.split(".")[0] for name in imports(path)}:
        assert where in ONLY_IN.get(name, {where}), f"{where} imports {name}"
        if name in WORKER_ONLY:
            assert where.startswith("edged/worker/"), f"{where} imports {name}"


@pytest.mark.parametrize("name", PURE)
def test_pure_module_knows_no_library(name: str) -> None:
    used = imports(ROOT / "edged/worker/llamacpp" / f"{name}.py")
    assert not {n.split(".")[0] for n in used} & {"llama_cpp", "numpy", "ctypes", "asyncio"}


def test_every_source_belongs_to_a_room() -> None:
    assert len(SOURCES) > 20
    for path in SOURCES:
        room(module_name(path))
