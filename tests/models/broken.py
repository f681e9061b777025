"""Files that are not models: an engine must refuse each with a clear error and survive."""

from pathlib import Path
from typing import Literal, get_args

from tests.models.cache import build_once
from tests.models.tiny import tiny, write_tiny

Kind = Literal[
    "empty", "not-a-gguf", "header-truncated", "truncated", "wrong-vocabulary", "directory"
]
"""truncated: whole header, tensors cut; wrong-vocabulary: more embedding rows than tokens."""
KINDS: tuple[Kind, ...] = get_args(Kind)

VERSION = 1


def broken(kind: Kind) -> Path:
    """Return a path that looks like a model's and is not one."""
    suffix = "" if kind in ("empty", "not-a-gguf", "directory") else f"-{_origin()}"
    return build_once(f"broken-{kind}.v{VERSION}{suffix}.gguf", lambda path: _build(path, kind))


def _origin() -> str:
    return tiny("plain").stem.rsplit("-", 1)[-1]


def _build(path: Path, kind: Kind) -> None:
    match kind:
        case "empty":
            path.touch()
        case "not-a-gguf":
            path.write_text("This is a text file with the name of a model.\n" * 100)
        case "header-truncated":
            path.write_bytes(tiny("plain").read_bytes()[:500])
        case "truncated":
            whole = tiny("plain").read_bytes()
            path.write_bytes(whole[: len(whole) * 3 // 4])
        case "wrong-vocabulary":
            write_tiny(path, "plain", n_extra_rows=7)
        case "directory":
            path.mkdir()
