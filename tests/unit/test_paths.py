from pathlib import Path

import pytest

from edged import paths

VARIABLES = [
    "STATE_DIRECTORY", "CACHE_DIRECTORY", "RUNTIME_DIRECTORY",
    "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR",
]  # fmt: skip


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", "/home/ann")


def found() -> list[Path]:
    return [paths.state_dir(), paths.cache_dir(), paths.runtime_dir()]


def test_folders_lie_at_home_without_any_hint() -> None:
    assert found() == [
        Path("/home/ann/.local/state/edged"),
        Path("/home/ann/.cache/edged"),
        Path("/home/ann/.local/state/edged/run"),
    ]


def test_xdg_folders_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES[3:]:
        monkeypatch.setenv(variable, f"/x/{variable}")
    assert found() == [Path(f"/x/{variable}/edged") for variable in VARIABLES[3:]]


def test_relative_xdg_folder_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES[3:]:
        monkeypatch.setenv(variable, "relative")
    assert all(path.is_relative_to("/home/ann") for path in found())


def test_systemd_comes_first_and_its_first_folder_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES[3:]:
        monkeypatch.setenv(variable, "/x")
    for variable in VARIABLES[:3]:
        monkeypatch.setenv(variable, f"/var/{variable}:/var/other")
    assert found() == [Path(f"/var/{variable}") for variable in VARIABLES[:3]]
