"""A model for LMDeploy is fetched as the folder that it reads, on a box that can use it."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from edged import config, plan
from edged.cli.pull import _wanted
from edged.config import Source
from edged.hardware import Engines, Gpu
from edged.pull import __main__ as child
from tests.hub.server import Hub
from tests.pull.support import REPOSITORY, box, weights
from tests.unit.lmdeploy_models import LLAMA

GIB = 1 << 30


def test_child_fetches_the_folder(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    files = {
        "model.safetensors": len(header).to_bytes(8, "little") + header + bytes(8),
        "config.json": json.dumps(LLAMA).encode(),
        "tokenizer.json": b"{}",
    }
    hub.add(REPOSITORY, files | {"Model-Q4_K_M.gguf": weights()})
    path = tmp_path / "models.toml"
    path.write_text(
        f'[store]\nfolder = "{tmp_path}/store"\n[models.m]\n'
        f'safetensors = "hf:{REPOSITORY}"\ngguf = "hf:{REPOSITORY}"\n'
    )
    gpu = Gpu(0, "RTX 4090", 24 * GIB, 24 * GIB, (8, 9), "550")
    engines = Engines(llamacpp="1", lmdeploy="0.18.0", lmdeploy_python="/python")
    capable = replace(box(), gpus=(gpu,), engines=engines)
    monkeypatch.setattr(child.hardware, "detect", lambda _: capable)
    source = Source("hf", REPOSITORY)

    made = plan.make(config.load(path), capable)
    assert made.models["m"].missing == (source,)
    assert [wanted.form for wanted in _wanted(made, [])] == ["safetensors"]
    assert [wanted.form for wanted in _wanted(plan.make(config.load(path), box()), [])] == ["gguf"]
    child._fetch(path, "m")
    after = plan.make(config.load(path), capable).models["m"]
    assert (after.engine, after.missing) == ("lmdeploy", ())
    assert after.launch is not None
    assert not list(Path(after.launch.path).glob("*.gguf"))
