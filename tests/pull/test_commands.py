"""`edged pull`, `edged models` and `edged gc` as their users run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edged.store import lock
from edged.store.lock import Locked, LockedFile
from tests.hub import Hub
from tests.pull.support import REPOSITORY, weights

LIMIT_S = 60


def edged(
    folder: Path, *arguments: str, fails: bool = False, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(
        [sys.executable, "-m", "edged", *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        env=os.environ
        | {"COLUMNS": "250", "NO_COLOR": "1", "EDGED_URL": "", "XDG_STATE_HOME": str(folder)},
    )
    assert (ran.returncode != 0) == fails, ran.stdout + ran.stderr
    return ran


def write(folder: Path, *models: str, more: str = "") -> str:
    text = f'[server]\nlisten = ["unix:{folder}/nobody.sock"]\n[store]\nfolder = "{folder}/store"\n'
    text += f"[defaults]\ncontext = 512\n{more}\n"
    for model in models:
        name, _, source = model.partition(" ")
        text += f'[models.{name}]\ngguf = "{source}"\n'
    path = folder / "models.toml"
    path.write_text(text)
    return str(path)


@pytest.fixture
def repository(hub: Hub) -> Hub:
    files = {f"Model-{tag}.gguf": weights(tag, kib) for tag, kib in (("Q4_K_M", 64), ("Q8_0", 128))}
    hub.add(REPOSITORY, {**files, "LICENSE": b"terms"})
    return hub


def test_pull_says_what_it_brought_and_then_that_it_is_here(
    repository: Hub, tmp_path: Path
) -> None:
    config = write(tmp_path, f"m hf:{REPOSITORY}:Q8_0")
    said = edged(tmp_path, "pull", "--config", config).stderr
    assert f"hf:{REPOSITORY}:Q8_0: Q8_0, 1" in said
    assert "revision aaaaaaaaaaaa" in said
    repository.requests.clear()
    assert "is here" in edged(tmp_path, "pull", "--config", config, "m").stderr
    assert not repository.requests


@pytest.mark.usefixtures("repository")
def test_pull_says_what_is_wrong(tmp_path: Path) -> None:
    config = write(tmp_path, f"m hf:{REPOSITORY}:Q5_0")
    ran = edged(tmp_path, "pull", "--config", config, fails=True)
    assert ran.stderr.splitlines()[-1] == (f"edged: {REPOSITORY} has no Q5_0; it has Q8_0, Q4_K_M")
    ran = edged(tmp_path, "pull", "--config", config, "other", fails=True)
    assert "models.toml has no [models.other]; it has m" in ran.stderr


def test_update_shows_first_and_takes_only_what_was_agreed(repository: Hub, tmp_path: Path) -> None:
    config = write(tmp_path, f"m hf:{REPOSITORY}:Q4_K_M")
    edged(tmp_path, "pull", "--config", config)
    assert "nothing new" in edged(tmp_path, "pull", "--update", "--config", config).stderr
    repository.repositories[REPOSITORY].revision = "b" * 40
    repository.repositories[REPOSITORY].files["Model-Q4_K_M.gguf"] = weights("new", 256)
    shown = edged(tmp_path, "pull", "--update", "--config", config, fails=True).stderr
    assert "revision aaaaaaaaaaaa → bbbbbbbbbbbb" in shown
    assert "Model-Q4_K_M.gguf: 81.7 KiB → 273.7 KiB, other content" in shown.replace("\n", " ")
    assert "nothing was changed: say --yes" in shown
    lock = json.loads((tmp_path / "store/models.lock").read_text())
    assert lock["sources"][0]["revision"] == "a" * 40
    edged(tmp_path, "pull", "--update", "--yes", "--config", config)
    lock = json.loads((tmp_path / "store/models.lock").read_text())
    assert lock["sources"][0]["revision"] == "b" * 40
    assert len(list((tmp_path / "store").rglob("*.gguf"))) == 2  # the old one until gc
    gone = edged(tmp_path, "gc", "--yes", "--config", config).stdout
    assert "aaaaaaaaaaaa/Model-Q4_K_M.gguf" in gone
    (left,) = (tmp_path / "store").rglob("*.gguf")
    assert left.read_bytes() == weights("new", 256)


@pytest.mark.usefixtures("repository")
def test_gc_removes_what_nobody_names_and_asks_first(tmp_path: Path) -> None:
    two = write(tmp_path, f"m hf:{REPOSITORY}:Q4_K_M", f"n hf:{REPOSITORY}:Q8_0")
    edged(tmp_path, "pull", "--config", two)
    store = tmp_path / "store"
    part = store / "hf" / REPOSITORY / "cccccccccccc" / "x.gguf.part"
    part.parent.mkdir()
    part.write_bytes(b"half")
    foreign = store / "hf/Other/Repo/x.gguf.part"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"half")
    assert "Q4" not in edged(tmp_path, "gc", "--dry-run", "--config", two).stdout
    one = write(tmp_path, f"m hf:{REPOSITORY}:Q4_K_M")
    dry = edged(tmp_path, "gc", "--dry-run", "--config", one).stdout
    assert "Model-Q8_0.gguf" in dry
    ran = edged(tmp_path, "gc", "--config", one, fails=True)
    assert "say --yes" in ran.stderr
    assert len(list(store.rglob("*.gguf"))) == 2
    other = tmp_path / "other.toml"
    other.write_text(Path(two).read_text() + f'[models.n]\ngguf = "hf:{REPOSITORY}:Q8_0"\n')
    kept = edged(tmp_path, "gc", "--yes", "--config", one, "--keep-for", str(other)).stdout
    assert "Model-Q8_0.gguf" not in kept
    edged(tmp_path, "gc", "--yes", "--config", one)
    assert [path.name for path in store.rglob("*.gguf")] == ["Model-Q4_K_M.gguf"]
    assert part.exists()
    assert not foreign.parent.exists()
    assert "nothing to remove" in edged(tmp_path, "gc", "--config", one).stdout
    assert "is here" in edged(tmp_path, "pull", "--config", one).stderr


def test_gc_spares_what_is_named_in_any_way(tmp_path: Path) -> None:
    made = tmp_path / "store" / "made"
    made.mkdir(parents=True)
    names = ["one.gguf", "two-00001-of-00002.gguf", "two-00002-of-00002.gguf", "other.gguf"]
    for name in names:
        (made / name).write_bytes(weights())
    on_its_way = tmp_path / "store" / "hf" / REPOSITORY / "cccccccccccc"
    on_its_way.mkdir(parents=True)
    (on_its_way / "m-00001-of-00002.gguf").write_bytes(weights())
    (on_its_way / "m-00002-of-00002.gguf.part").write_bytes(b"half")
    config = write(
        tmp_path,
        "a file:store/made/one.gguf",  # beside models.toml
        f"b file:{made}/two-00001-of-00002.gguf",
        f"m hf:{REPOSITORY}",
    )
    ran = edged(tmp_path, "gc", "--yes", "--config", config)
    assert "other.gguf" in ran.stdout
    assert sorted(path.name for path in made.iterdir()) == sorted(names[:3])
    assert len(list(on_its_way.iterdir())) == 2


def test_gc_waits_for_a_pull_and_looks_again(tmp_path: Path) -> None:
    config = write(tmp_path, "guide builtin:edge-guide")
    store = tmp_path / "store"
    for name in ("taken.gguf", "other.gguf"):
        path = store / "hf/Org/Repo/r" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(weights())
    with lock.bringing(store):
        process = subprocess.Popen(
            [sys.executable, "-m", "edged", "gc", "--yes", "--config", config],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        assert "waiting for its end" in process.stderr.readline()
        taken = store / "hf/Org/Repo/r/taken.gguf"
        file = LockedFile("hf/Org/Repo/r/taken.gguf", taken.stat().st_size, "0" * 64)
        entry = Locked("builtin:edge-guide", "gguf", "r", (file,))
        lock.change(store, lambda now: now.having(entry))
    assert process.wait(60) == 0
    process.stderr.close()
    assert [path.name for path in taken.parent.iterdir()] == ["taken.gguf"]


@pytest.mark.usefixtures("repository")
def test_models_says_what_files_are_and_whether_they_fit(tmp_path: Path) -> None:
    config = write(tmp_path, f"m hf:{REPOSITORY}:Q4_K_M", "guide builtin:edge-guide")
    before = edged(tmp_path, "models", "--config", config).stdout
    assert "not here yet: `edged pull`" in before
    edged(tmp_path, "pull", "--config", config)
    shown = edged(tmp_path, "models", "--config", config).stdout
    guide = next(line for line in shown.splitlines() if line.startswith("guide"))
    assert "edge-guide.gguf" in guide
    assert "yes, " in guide
    assert "on the CPU" in guide
    assert "No daemon answers." in shown


def test_inspect_looks_into_any_file(tmp_path: Path) -> None:
    config = write(tmp_path, "guide builtin:edge-guide")
    facts = json.loads(
        edged(tmp_path, "models", "inspect", "guide", "--json", "--config", config).stdout
    )
    assert facts["kind"] == "chat"
    assert facts["chat_template"].startswith("yes")
    assert facts["memory_bytes"] > facts["file_bytes"]
    assert facts["fits"] == "on the CPU"
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    ran = edged(tmp_path, "models", "inspect", str(tmp_path / "x.gguf"), fails=True)
    assert "is truncated" in ran.stderr
