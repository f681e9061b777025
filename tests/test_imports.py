"""Imports point down only. The table is data; the code is read as text, nothing is imported."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "edged").rglob("*.py"))

GROUND = {"edged", "edged.protocol", "edged.errors", "edged.log"}
FACTS = GROUND | {
    "edged.config",
    "edged.config_values",
    "edged.hardware",
    "edged.paths",
    "edged.status",
}
DECISIONS = FACTS | {
    "edged.plan",
    "edged.memory",
    "edged.store",
    "edged.worker_process",
    "edged.lifecycle",
}

# Room → what it may import of edged (a room may always import itself). A room is a module, or a
# package with all below it; the longest match of a module's name is its room.
MAY_IMPORT = {
    "edged": set(),
    "edged.errors": set(),
    "edged.log": set(),
    "edged.paths": set(),
    "edged.protocol": {"edged.errors"},
    "edged.toml_lines": set(),
    "edged.config_values": set(),
    "edged.config_keys": {"edged.config_values"},
    "edged.config": GROUND | {"edged.config_keys", "edged.config_values", "edged.toml_lines"},
    "edged.cgroup": set(),
    "edged.hardware": GROUND | {"edged.config", "edged.cgroup"},
    "edged.store": FACTS,
    "edged.memory": FACTS,
    "edged.estimate": FACTS | {"edged.store"},
    "edged.plan": FACTS | {"edged.store", "edged.estimate"},
    "edged.status": {"edged.protocol", "edged.hardware"},
    "edged.lifecycle": GROUND,
    "edged.stderr_tail": GROUND,
    "edged.stream": GROUND,
    "edged.worker_process": FACTS | {"edged.lifecycle", "edged.stderr_tail", "edged.stream"},
    "edged.line": DECISIONS,
    "edged.keeper": DECISIONS | {"edged.line"},
    "edged.metrics": DECISIONS | {"edged.supervisor"},
    "edged.systemd": GROUND,
    "edged.watch": GROUND,
    "edged.supervisor": DECISIONS | {"edged.keeper"},
    "edged.api": DECISIONS | {"edged.supervisor", "edged.metrics"},
    "edged.daemon": DECISIONS
    | {
        "edged.supervisor",
        "edged.metrics",
        "edged.systemd",
        "edged.watch",
        "edged.listeners",
        "edged.api",
    },
    "edged.listeners": FACTS,
    "edged.cli": DECISIONS | {"edged.supervisor", "edged.daemon", "edged.api"},
    "edged.__main__": {"edged.cli"},
    "edged.worker": GROUND,
}

# Native code and heavy libraries: where each may be imported, and nowhere else.
ONLY_IN = {
    "llama_cpp": {"edged/worker/llamacpp/runner.py"},
    "lmdeploy": {"edged/worker/lmdeploy/engine.py"},
    "torch": {"edged/worker/lmdeploy/engine.py"},
    "gguf": set(),
}
WORKER_ONLY = {"numpy", "jinja2"}
PURE = ["scheduler", "prefixes", "sequence"]


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
    used = {room(name) for name in imports(path) if name.split(".")[0] == "edged"}
    assert used - {own} <= MAY_IMPORT[own], f"{own} may not import {used - MAY_IMPORT[own]}"


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
