"""What the documents say about files, commands and dependencies is true."""

import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DEPENDENCIES = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", path.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("name", [re.split(r"[<>=\[]", line)[0] for line in DEPENDENCIES])
def test_dependency_has_its_reason(name: str) -> None:
    text = (ROOT / "docs/dependencies.md").read_text()
    assert re.search(rf"^\| {re.escape(name)} \|", text, re.MULTILINE), name


@pytest.mark.parametrize("line", DEPENDENCIES)
def test_dependency_has_an_upper_bound(line: str) -> None:
    assert ",<" in line


def test_make_commands_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        named = set(re.findall(r"`make ([a-z-]+)", path.read_text()))
        named |= set(re.findall(r"^make ([a-z-]+)", path.read_text(), re.MULTILINE))
        assert named <= targets, f"{path.name} names {named - targets}"


def test_version_is_in_the_changelog() -> None:
    version = re.search(r'"(.+)"', (ROOT / "edged/__init__.py").read_text().split("=")[1])
    assert version
    assert f"## {version[1]}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_file_of_the_plan_exists() -> None:
    """`docs/architecture.md` names each room; a name without a file is a lie, so is the reverse."""
    plan = (ROOT / "docs/architecture.md").read_text()
    for path in (ROOT / "edged").rglob("*.py"):
        if path.name not in {"__init__.py", "__main__.py"}:
            assert path.name in plan, f"docs/architecture.md does not name {path}"
    layout = plan.split("```")[3]
    for name in re.findall(r"(\w+\.py)", layout):
        assert list((ROOT / "edged").rglob(name)), f"docs/architecture.md names {name}"
