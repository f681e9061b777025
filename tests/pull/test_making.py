"""`edged quantize` with llama.cpp's own quantizer, `edged convert` with its converter."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from edged import plan
from edged.config import load
from edged.store.gguf import read_header
from tests.models.tiny import tiny
from tests.pull.support import box
from tests.pull.test_commands import edged, write

needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="the llama.cpp engine is not installed"
)


@needs_engine
def test_quantised_model_is_smaller_and_a_model(tmp_path: Path) -> None:
    config = write(tmp_path, f"m file:{tiny('plain')}")
    said = edged(tmp_path, "quantize", "m", "q8_0", "--config", config).stdout
    made = tmp_path / "store/made/m-Q8_0.gguf"
    assert f'gguf = "file:{made}"' in said
    header = read_header(made)
    assert header.quantisation == "Q8_0"
    assert header.file_bytes < tiny("plain").stat().st_size / 2
    config = write(tmp_path, f"m file:{made}")
    assert plan.make(load(config), box()).models["m"].launch
    assert "nothing to remove" in edged(tmp_path, "gc", "--config", config).stdout
    ran = edged(tmp_path, "quantize", "m", "Q4_0", "--config", config, fails=True)
    assert "is Q8_0 already" in ran.stderr
    edged(tmp_path, "quantize", "m", "Q4_0", "--requantize", "--config", config)


@needs_engine
def test_what_the_quantizer_refuses_leaves_nothing(tmp_path: Path) -> None:
    config = write(tmp_path, f"m file:{tiny('plain')}")
    ran = edged(tmp_path, "quantize", "m", "Q7_X", "--config", config, fails=True)
    assert "there is no type Q7_X; there are " in ran.stderr
    assert not list((tmp_path / "store/made").iterdir())
    ran = edged(tmp_path, "quantize", "other", "Q8_0", "--config", config, fails=True)
    assert "neither a model of models.toml nor a file" in ran.stderr


def test_convert_says_what_is_missing(tmp_path: Path) -> None:
    config = write(tmp_path, "guide builtin:edge-guide")
    ran = edged(
        tmp_path, "convert", "guide", "--converter", "/nowhere.py", "--config", config, fails=True
    )
    assert "convert_hf_to_gguf.py is not here" in ran.stderr
    script = tmp_path / "convert_hf_to_gguf.py"
    script.touch()
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    ran = edged(
        *(tmp_path, "convert", "guide", "--converter", str(script), "--python", str(bare)),
        *("--config", config),
        fails=True,
    )
    assert "has no torch, transformers" in ran.stderr


def test_convert_runs_the_converter_and_checks_what_it_made(tmp_path: Path) -> None:
    """A converter and requirements of our own: llama.cpp's needs gigabytes of torch."""
    config = write(tmp_path, "guide builtin:edge-guide")
    folder = tmp_path / "weights"
    folder.mkdir()
    modules = tmp_path / "modules"
    modules.mkdir()
    for name in ("torch", "transformers", "gguf", "sentencepiece"):
        (modules / f"{name}.py").touch()
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={modules} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(
        "import shutil, sys\n"
        "folder, flag, out, kind, name = sys.argv[1:]\n"
        "assert (flag, kind) == ('--outfile', '--outtype')\n"
        "if name == 'q8_0': sys.exit('Model FooForCausalLM is not supported')\n"
        f"shutil.copy({str(tiny('plain'))!r}, out)\n"
    )
    arguments = ("convert", str(folder), "--converter", str(script), "--python", str(python))
    edged(tmp_path, *arguments, "--config", config)
    assert read_header(tmp_path / "store/made/weights-F16.gguf").architecture == "llama"
    ran = edged(tmp_path, *arguments, "--type", "q8_0", "--config", config, fails=True)
    assert "Model FooForCausalLM is not supported" in ran.stderr
