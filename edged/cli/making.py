"""`edged quantize` and `edged convert`: other files from those that are here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress as Bars

from edged import config, hardware
from edged.cli.client import ConfigFile, fail
from edged.config import Config, ConfigProblems, Source
from edged.config.values import format_bytes
from edged.errors import NotFetched, StoreError
from edged.pull.auto import picker
from edged.pull.pulling import Pull
from edged.store import folders, verify
from edged.store.download import check_room
from edged.store.gguf import read_header, read_tensors
from edged.store.lock import Form, make_folder, own
from edged.store.source import resolve

_FLOATS = {"F32", "F16", "BF16"}
_STEP = re.compile(r"\[\s*(\d+)/\s*(\d+)\]")
_LAST_WORDS = 6
_CONVERTER = "convert_hf_to_gguf.py"
_NEEDS = ("torch", "transformers", "gguf", "sentencepiece")

_Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Without it, `made` in the store's folder."),
]


def quantize(
    model: Annotated[str, typer.Argument(help="A model of models.toml, or a GGUF file.")],
    kind: Annotated[str, typer.Argument(metavar="TYPE", help="Q4_K_M, Q8_0, …")],
    config_file: ConfigFile = None,
    out: _Out = None,
    again: Annotated[
        bool,
        typer.Option("--requantize", help="From a quantised file too; worse than from F16."),
    ] = False,
) -> None:
    """Make a smaller file of a model with llama.cpp's own quantizer."""
    kind = kind.upper()
    try:
        loaded = _loaded(config_file)
        source = _files_of(model, loaded, "gguf")
        header = read_header(source)
        if header.quantisation not in _FLOATS and not again:
            fail(
                f"{source} is {header.quantisation} already: take its F16 or BF16 file, "
                "or say --requantize and accept what is lost twice"
            )
        target = out or _made(loaded, f"{_plain(model)}-{kind}.gguf")
        n_weights = sum(_product(tensor.shape) for tensor in read_tensors(source).values())
        check_room(target.parent, int(n_weights * _bits(kind) / 8), f"{kind} of {model}")
        part = _part(target)
        arguments = [str(source), str(part), kind, *(["again"] if again else [])]
        command = [sys.executable, "-m", "edged.worker.quantise", *arguments]
        _run(command, f"{model} → {kind}", part)
        _finish(part, target)
    except StoreError as error:
        fail(error.message)
    except OSError as error:
        fail(str(error))
    before, after = header.file_bytes, target.stat().st_size
    print(f"{target}: {format_bytes(after)}, from {format_bytes(before)}.")
    print(f'In models.toml: gguf = "file:{target}"')


def convert(  # noqa: PLR0917 - typer reads them as options
    model: Annotated[
        str, typer.Argument(help="A model of models.toml with safetensors, or a folder.")
    ],
    config_file: ConfigFile = None,
    kind: Annotated[str, typer.Option("--type", help="f16, bf16, f32 or q8_0.")] = "f16",
    out: _Out = None,
    converter: Annotated[
        str | None,
        typer.Option(envvar="EDGED_CONVERTER", help=f"llama.cpp's {_CONVERTER}."),
    ] = None,
    python: Annotated[
        str,
        typer.Option(envvar="EDGED_CONVERTER_PYTHON", help="A Python that has its requirements."),
    ] = sys.executable,
) -> None:
    """Make a GGUF of safetensors with llama.cpp's converter, where that is installed."""
    script = converter or shutil.which(_CONVERTER)
    if script is None or not Path(script).is_file():
        fail(
            f"llama.cpp's {_CONVERTER} is not here: take it from the source of llama.cpp and name "
            "it with --converter, with its requirements in the Python of --python"
        )
    absent = _absent(python)
    if absent:
        fail(
            f"{python} has no {', '.join(absent)}, which {_CONVERTER} needs: install them into an "
            "environment of their own (llama.cpp's requirements.txt) and name it with --python"
        )
    try:
        loaded = _loaded(config_file)
        folder = _files_of(model, loaded, "safetensors")
        target = out or _made(loaded, f"{_plain(model)}-{kind.upper()}.gguf")
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        check_room(target.parent, weights * (2 if kind == "f32" else 1), f"the GGUF of {model}")
        part = _part(target)
        command = [python, script, str(folder), "--outfile", str(part), "--outtype", kind]
        _run(command, f"{model} → GGUF", part)
        _finish(part, target)
    except StoreError as error:
        fail(error.message)
    except OSError as error:
        fail(str(error))
    print(f"{target}: {format_bytes(target.stat().st_size)}.")
    print(f'In models.toml: gguf = "file:{target}"')


# ── from what, to where ──


def _loaded(config_file: str | None) -> Config:
    try:
        return config.load(Path(config.find(config_file)))
    except ConfigProblems as error:
        fail(error.message)


def _files_of(model: str, loaded: Config, form: Form) -> Path:
    """Return the file or folder of a model; what is not here yet is fetched."""
    if model not in loaded.models:
        path, kind = Path(model), "file" if form == "gguf" else "folder"
        if path.is_file() if form == "gguf" else path.is_dir():
            return path.absolute()
        fail(f"{model} is neither a model of models.toml nor a {kind}")
    source: Source | None = getattr(loaded.models[model], form)
    if source is None:
        fail(f"model {model!r} has no {form} = …")
    store = folders.models(loaded.store.folder, loaded.path)
    beside = Path(loaded.path).parent
    try:
        return resolve(source, beside, form, store=store)
    except NotFetched:
        pick = picker(loaded, lambda: hardware.detect(loaded.hardware))
        with Pull(loaded, pick, lambda _: None) as pulling:
            pulling.fetch(pulling.resolve(source, model, form))
        return resolve(source, beside, form, store=store)


def _made(loaded: Config, name: str) -> Path:
    store = folders.models(loaded.store.folder, loaded.path)
    make_folder(store / "made", store)
    return store / "made" / name


def _plain(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(model).name.removesuffix(".gguf"))


def _part(target: Path) -> Path:
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    return part


def _finish(part: Path, target: Path) -> None:
    verify.check_header(part, target.name)
    own(part, target.parent)
    part.replace(target)


def _product(shape: Sequence[int]) -> int:
    n = 1
    for each in shape:
        n *= each
    return n


def _bits(kind: str) -> float:
    """Return about how many bits a weight takes, rather too many."""
    if kind in _FLOATS:
        return 32 if kind == "F32" else 16
    digit = re.search(r"\d", kind)
    return (int(digit[0]) if digit else 8) + 1.3


def _absent(python: str) -> list[str]:
    check = (
        "import importlib.util, sys;"
        "print(*[n for n in sys.argv[1:] if importlib.util.find_spec(n) is None])"
    )
    ran = subprocess.run(
        [python, "-c", check, *_NEEDS], capture_output=True, text=True, check=False, timeout=60
    )
    return ran.stdout.split() if ran.returncode == 0 else list(_NEEDS)


# ── the child ──


def _run(command: list[str], what: str, part: Path) -> None:
    """Run a child to its end with a bar; its last words are the reason when it fails."""
    last: deque[str] = deque(maxlen=_LAST_WORDS)
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    console = Console(stderr=True)
    try:
        with Bars(console=console, transient=True, disable=not console.is_terminal) as bars:
            task = bars.add_task(what, total=None)
            assert child.stderr is not None
            for line in child.stderr:
                last.append(line.strip())
                if step := _STEP.search(line):
                    bars.update(task, completed=int(step[1]), total=int(step[2]))
        code = child.wait()
    except BaseException:
        child.kill()
        child.wait()
        part.unlink(missing_ok=True)
        raise
    if code != 0 or not part.exists():
        part.unlink(missing_ok=True)
        fail(f"{what} failed ({code}): " + "\n  ".join(line for line in last if line))
