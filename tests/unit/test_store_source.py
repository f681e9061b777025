import os
from pathlib import Path

import pytest

from edged.config import Source
from edged.errors import StoreError
from edged.store.source import resolve


def refusal(source: Source, beside: Path = Path("/")) -> str:
    with pytest.raises(StoreError) as caught:
        resolve(source, beside)
    return caught.value.message


def test_builtin_model_is_in_the_package() -> None:
    path = resolve(Source("builtin", "edge-guide"), Path("/nowhere"))
    assert path.is_absolute()
    assert path.name == "edge-guide.gguf"


def test_unknown_builtin_names_what_exists() -> None:
    assert "it has edge-guide" in refusal(Source("builtin", "nope"))


def test_relative_path_begins_beside_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"x")
    (tmp_path / "conf").mkdir()
    assert resolve(Source("file", "../a.gguf"), tmp_path / "conf") == tmp_path / "a.gguf"
    absolute = Source("file", str(tmp_path / "a.gguf"))
    assert resolve(absolute, Path("/elsewhere")) == tmp_path / "a.gguf"
    assert resolve(Source("file", f"//{tmp_path}/a.gguf"), Path("/")) == tmp_path / "a.gguf"


def test_absent_file_says_whether_its_folder_exists(tmp_path: Path) -> None:
    assert refusal(Source("file", "a.gguf"), tmp_path).endswith(f"{tmp_path}/a.gguf does not exist")
    assert "nor does the folder" in refusal(Source("file", "no/a.gguf"), tmp_path)


def test_directory_lists_the_models_in_it(tmp_path: Path) -> None:
    (tmp_path / "b.gguf").touch()
    message = refusal(Source("file", str(tmp_path)))
    assert "is a directory, not a GGUF file; in it: b.gguf" in message


def test_empty_file_and_pipe_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    assert "is empty" in refusal(Source("file", "a.gguf"), tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(Source("file", "pipe"), tmp_path)


def test_unreadable_file_names_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").write_bytes(b"x")

    def deny(_path: Path, _mode: str) -> None:  # root may read everything
        raise PermissionError

    monkeypatch.setattr(Path, "open", deny)
    message = refusal(Source("file", "a.gguf"), tmp_path)
    assert f"the daemon runs as user {os.geteuid()}" in message


def test_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").symlink_to("a.gguf")
    assert "cannot be read" in refusal(Source("file", "a.gguf"), tmp_path)


@pytest.mark.parametrize("scheme", ["hf", "ms", "https"])
def test_remote_source_says_that_it_comes_with_pull(scheme: str) -> None:
    assert "edged pull" in refusal(Source(scheme, "a/b"))  # type: ignore[arg-type]


def test_safetensors_are_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    assert resolve(Source("file", "."), tmp_path, "safetensors") == tmp_path
    with pytest.raises(StoreError, match="not a folder"):
        resolve(Source("file", "a"), tmp_path, "safetensors")
