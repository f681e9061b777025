"""Models with safetensors beside their GGUF: fetched, exported, imported and collected by form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from edged import plan
from edged.config import load
from edged.errors import StoreError
from edged.hardware import Engines, Gpu
from edged.store.safetensors import read_folder
from tests.hub import Hub
from tests.pull.support import REPOSITORY, box, pull, weights
from tests.pull.test_commands import edged, write
from tests.unit.lmdeploy_models import LLAMA

GIB = 1 << 30
GPU = Gpu(0, "RTX 4090", 24 * GIB, 24 * GIB, (8, 9), "550")
ENGINES = Engines(llamacpp="1", lmdeploy="0.18.0", lmdeploy_python="/python")
CAPABLE = replace(box(32), gpus=(GPU,), engines=ENGINES)
INDEX = "model.safetensors.index.json"


def shard(name: str) -> bytes:
    header = json.dumps({name: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(8)


@pytest.fixture
def config(hub: Hub, tmp_path: Path) -> str:
    """Give models.toml with one source for both forms."""
    shards = {f"model-0000{n}-of-00002.safetensors": shard(f"w{n}") for n in (1, 2)}
    index = {"weight_map": {f"w{n}": name for n, name in enumerate(shards, 1)}}
    files = shards | {
        INDEX: json.dumps(index).encode(),
        "config.json": json.dumps(LLAMA).encode(),
        "tokenizer.json": b"{}",
    }
    hub.add(REPOSITORY, files | {"Model-Q4_K_M.gguf": weights(), "LICENSE": b"terms"})
    here = tmp_path / "here"
    here.mkdir()
    return written(here)


def written(folder: Path) -> str:
    path = Path(write(folder, f"m hf:{REPOSITORY}"))
    path.write_text(path.read_text() + f'safetensors = "hf:{REPOSITORY}"\n')
    return str(path)


def test_a_box_takes_what_it_uses_and_all_for_others(config: str, tmp_path: Path) -> None:
    here, stick, there = (tmp_path / each for each in ("here", "stick", "there"))
    edged(here, "pull", "--config", config)
    assert not list((here / "store").rglob("*.safetensors"))  # no GPU here
    said = edged(here, "export", str(stick), "--config", config).stdout
    assert f"m: hf:{REPOSITORY} (safetensors) is not here and stays behind" in said
    assert "1 sources" in said
    edged(here, "pull", "--all", "--config", config)
    assert "2 sources" in edged(here, "export", str(stick), "--config", config).stdout
    there.mkdir()
    other = written(there)
    edged(there, "import", str(stick), "--config", other)
    made = plan.make(load(other), CAPABLE).models["m"]
    assert (made.engine, made.missing) == ("lmdeploy", ())
    assert made.launch is not None
    folder = Path(made.launch.path)
    assert {path.name for path in folder.iterdir()} >= {INDEX, "config.json", "tokenizer.json"}
    assert "nothing to remove" in edged(there, "gc", "--config", other).stdout
    # the same source is named as GGUF only from here on
    write(there, f"m hf:{REPOSITORY}")
    gone = edged(there, "gc", "--yes", "--config", other).stdout
    assert "safetensors" in gone
    assert not list((there / "store").rglob("*.safetensors"))
    assert len(list((there / "store").rglob("*.gguf"))) == 1
    assert plan.make(load(other), CAPABLE).models["m"].engine == "llamacpp"


def test_box_with_a_gpu_exports_without_the_gguf(config: str, tmp_path: Path) -> None:
    pull(load(config), form="safetensors")
    here, stick = tmp_path / "here", tmp_path / "stick"
    said = edged(here, "export", str(stick), "--config", config).stdout
    assert f"m: hf:{REPOSITORY} (gguf) is not here and stays behind" in said
    assert not list(stick.rglob("*.gguf"))
    assert len(list(stick.rglob("*.safetensors"))) == 2


def test_nothing_of_a_model_is_no_export(config: str, tmp_path: Path) -> None:
    said = edged(tmp_path / "here", "export", str(tmp_path / "s"), "--config", config, fails=True)
    assert "is not here yet: run `edged pull m` first" in said.stderr


def test_folder_that_lacks_a_part_is_found_before_a_worker_starts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "a.safetensors").write_bytes(shard("w1"))
    (tmp_path / INDEX).write_text(
        json.dumps({"weight_map": {"w1": "a.safetensors", "w2": "b.safetensors"}})
    )
    with pytest.raises(StoreError, match=r"lacks b\.safetensors \(1 of 2 files"):
        read_folder(tmp_path)
    (tmp_path / "b.safetensors").write_bytes(shard("w2"))
    assert read_folder(tmp_path).bytes == 16
    (tmp_path / INDEX).write_text("{")
    with pytest.raises(StoreError, match=f"damaged file, {INDEX}"):
        read_folder(tmp_path)
