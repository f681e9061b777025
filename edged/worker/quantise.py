"""`python -m edged.worker.quantise SOURCE TARGET TYPE [again]`: llama.cpp's own quantizer.

A process of its own, since llama.cpp ends it when something is wrong. What llama.cpp says goes to
stderr, a line for each tensor: `[  12/ 291] blk.0.…`. `again`: from what is quantised already.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from edged.worker.engine import EngineMissingError
from edged.worker.llamacpp.library import open_library

EXIT_REFUSED = 2
_PREFIXES = ("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_")


def main(source: str, target: str, name: str, *, again: bool) -> int:
    """Quantise `source` into `target`; return the exit code."""
    try:
        lib = open_library()
    except EngineMissingError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the caller reads it
        return EXIT_REFUSED
    types = _types(lib)
    if name not in types:
        print(f"there is no type {name}; there are {', '.join(sorted(types))}", file=sys.stderr)  # noqa: T201
        return EXIT_REFUSED
    callback = lib.llama_log_callback(_say)
    lib.llama_log_set(callback, ctypes.c_void_p(0))
    params = lib.llama_model_quantize_default_params()
    params.ftype = types[name]
    params.allow_requantize = again
    code = int(lib.llama_model_quantize(source.encode(), target.encode(), params))
    del callback  # not before: llama.cpp holds a raw pointer
    return 1 if code else 0


def _types(lib: Any) -> dict[str, int]:
    return {
        name.removeprefix(prefix): int(getattr(lib, name))
        for name in dir(lib)
        for prefix in _PREFIXES
        if name.startswith(prefix)
    }


def _say(_level: int, text: bytes, _user_data: Any) -> None:
    sys.stderr.buffer.write(text)
    sys.stderr.flush()


if __name__ == "__main__":
    _, given, wanted, kind, *more = sys.argv
    sys.exit(main(given, wanted, kind, again=more == ["again"]))
