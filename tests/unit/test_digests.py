"""Which content a file has, by what the lock of the store says: measured memory goes by it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edged import plan
from edged.config import Config, Model, Source, Store
from edged.hardware import detect
from edged.store import lock, parts
from edged.store.lock import Locked, LockedFile
from tests.models.tiny import tiny

SOURCE = Source("https", "//example.org/m.gguf")


def fetched(store: Path, n_bytes: int | None = None) -> Path:
    """Put a model into the store as a fetch would; `n_bytes`: what the lock says of its size."""
    path = store / "https" / "m.gguf"
    path.parent.mkdir(parents=True)
    shutil.copy(tiny("plain"), path)
    size = path.stat().st_size if n_bytes is None else n_bytes
    file = LockedFile("https/m.gguf", size, "d1")
    lock.change(store, lambda old: old.having(Locked(str(SOURCE), "gguf", "", (file,))))
    return path


def test_plan_knows_the_digests_of_fetched_files(tmp_path: Path) -> None:
    path = fetched(tmp_path)
    models = {
        "there": Model("there", SOURCE, context=64),
        "owned": Model("owned", Source("file", str(tiny("plain"))), context=64),
    }
    config = Config(path=str(tmp_path / "models.toml"), models=models, store=Store(str(tmp_path)))
    made = plan.make(config, detect()).models
    assert made["there"].launch, made["there"].reasons
    assert made["there"].digests == {str(path): "d1"}
    assert made["owned"].digests == {}


def test_file_of_another_size_is_not_the_one_that_was_fetched(tmp_path: Path) -> None:
    path = fetched(tmp_path, n_bytes=5)
    assert parts.digest(path, lock.files(tmp_path)) is None


@pytest.mark.parametrize("known", [1, 2])
def test_model_in_parts_has_the_digest_of_all_of_them(tmp_path: Path, known: int) -> None:
    files = {}
    for n in (1, 2):
        part = tmp_path / f"m-0000{n}-of-00002.gguf"
        part.write_bytes(bytes(n))
        files[str(part)] = LockedFile(part.name, n, f"d{n}")
    first = tmp_path / "m-00001-of-00002.gguf"
    whole = parts.digest(first, files)
    assert whole not in {None, "d1", "d2"}
    files.pop(str(tmp_path / f"m-0000{known}-of-00002.gguf"))
    assert parts.digest(first, files) is None


def test_lock_that_is_damaged_or_absent_knows_nothing(tmp_path: Path) -> None:
    assert lock.files(tmp_path) == {}
    (tmp_path / lock.NAME).write_text("{")
    assert lock.files(tmp_path) == {}
