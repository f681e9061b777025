"""Models from box to box, and from other programs' stores."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from edged import plan
from edged.config import load
from edged.errors import StoreError
from edged.store import moving
from tests.hub import Hub
from tests.pull.support import REPOSITORY, box, sha256, weights
from tests.pull.test_commands import edged, write


@pytest.fixture
def exported(hub: Hub, tmp_path: Path) -> Path:
    """Give a folder that `edged export` has written."""
    hub.add(REPOSITORY, {"Model-Q4_K_M.gguf": weights(kib=256), "LICENSE": b"terms"})
    here = tmp_path / "here"
    here.mkdir()
    config = write(here, f"m hf:{REPOSITORY}:Q4_K_M", "guide builtin:edge-guide")
    edged(here, "pull", "--config", config)
    said = edged(here, "export", str(tmp_path / "stick"), "--config", config).stdout
    assert f"edged import {tmp_path}/stick" in said
    return tmp_path / "stick"


def other_box(folder: Path) -> str:
    """Return the configuration of a box that has none of the files, and no network."""
    there = folder / "there"
    there.mkdir(exist_ok=True)
    return write(there, f"m hf:{REPOSITORY}:Q4_K_M")


def test_export_and_import_bring_the_same_model(exported: Path, tmp_path: Path) -> None:
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=exported, check=True)
    licences = (exported / "LICENCES.txt").read_text()
    assert f"hf:{REPOSITORY}:Q4_K_M: apache-2.0" in licences
    assert "LICENSE" in licences
    config = other_box(tmp_path)
    edged(tmp_path / "there", "import", str(exported), "--config", config)
    made = plan.make(load(config), box()).models["m"]
    assert made.launch
    assert Path(made.launch.path).read_bytes() == weights(kib=256)


def test_import_brings_the_configuration_where_there_is_none(
    exported: Path, tmp_path: Path
) -> None:
    there = tmp_path / "new" / "models.toml"
    there.parent.mkdir()
    text = (exported / "models.toml").read_text().replace("/here/", "/new/")
    (exported / "models.toml").write_text(text)
    edged(there.parent, "import", str(exported), "--config", str(there))
    assert there.read_text() == text
    assert plan.make(load(there), box()).models["m"].launch


def test_damaged_bytes_are_not_taken(exported: Path, tmp_path: Path) -> None:
    (gguf,) = exported.rglob("*.gguf")
    content = bytearray(gguf.read_bytes())
    content[5000] ^= 1
    gguf.write_bytes(content)
    config = other_box(tmp_path)
    ran = edged(tmp_path / "there", "import", str(exported), "--config", config, fails=True)
    assert "is damaged: its SHA-256 is" in ran.stderr
    assert not list((tmp_path / "there").rglob("*.gguf"))
    assert plan.make(load(config), box()).models["m"].is_fetching


def test_import_refuses_what_leads_out_of_the_store(exported: Path, tmp_path: Path) -> None:
    lock = json.loads((exported / "models.lock").read_text())
    lock["sources"][0]["files"][0]["path"] = "../../evil.gguf"
    (exported / "models.lock").write_text(json.dumps(lock))
    config = other_box(tmp_path)
    ran = edged(tmp_path / "there", "import", str(exported), "--config", config, fails=True)
    assert "outside of the store" in ran.stderr


def test_half_an_export_is_no_import(exported: Path, tmp_path: Path) -> None:
    (exported / "models.lock").unlink()
    ran = edged(tmp_path, "import", str(exported), "--config", other_box(tmp_path), fails=True)
    assert "not written by `edged export`, or not to its end" in ran.stderr


def test_copy_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    content = weights(kib=64)
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_bytes(content)
    (tmp_path / "b.part").write_bytes(content[:30_000])
    told: list[int] = []
    assert moving.bring(source, target, sha256(content), told.append) == sha256(content)
    assert target.read_bytes() == content
    target.unlink()
    (tmp_path / "b.part").write_bytes(b"x" * 30_000)  # a part of something else
    assert moving.bring(source, target, sha256(content)) == sha256(content)
    assert target.read_bytes() == content
    with pytest.raises(StoreError, match="is missing"):
        moving.bring(tmp_path / "none", tmp_path / "c", None)


def test_from_ollama(tmp_path: Path) -> None:
    content = weights(kib=32)
    store = tmp_path / "ollama"
    manifest = store / "manifests/registry.ollama.ai/library/qwen3/8b"
    manifest.parent.mkdir(parents=True)
    (store / "blobs").mkdir()
    layers = []
    for media, blob in (("model", content), ("license", b"terms"), ("params", b"{}")):
        (store / "blobs" / f"sha256-{sha256(blob)}").write_bytes(blob)
        kind = f"application/vnd.ollama.image.{media}"
        layers.append({"mediaType": kind, "digest": f"sha256:{sha256(blob)}", "size": len(blob)})
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    config = write(tmp_path, "guide builtin:edge-guide")
    lines = edged(tmp_path, "import", str(store), "--from-ollama", "--config", config).stdout
    Path(config).write_text(Path(config).read_text() + lines)
    made = plan.make(load(config), box()).models["qwen3:8b"]
    assert made.launch
    path = Path(made.launch.path)
    assert path.read_bytes() == content
    assert path.samefile(store / "blobs" / f"sha256-{sha256(content)}")  # no room twice
    assert "nothing to remove" in edged(tmp_path, "gc", "--config", config).stdout.lower()


def test_from_hf_cache(hub: Hub, tmp_path: Path) -> None:
    content = weights(kib=32)
    repository = tmp_path / "hub" / f"models--{REPOSITORY.replace('/', '--')}"
    snapshot = repository / "snapshots" / ("e" * 40)
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs/main").write_text("e" * 40)
    (repository / "blobs" / sha256(content)).write_bytes(content)
    (snapshot / "M-Q4_K_M.gguf").symlink_to(f"../../blobs/{sha256(content)}")
    config = write(tmp_path, f"m hf:{REPOSITORY}:Q4_K_M", "n hf:Org/Other")
    said = edged(
        tmp_path, "import", str(tmp_path / "hub"), "--from-hf-cache", "--config", config
    ).stdout
    assert f"hf:Org/Other: is not in {tmp_path}/hub" in said
    made = plan.make(load(config), box()).models["m"]
    assert made.launch
    assert Path(made.launch.path).samefile(repository / "blobs" / sha256(content))
    assert not hub.requests
