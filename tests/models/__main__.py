"""``python -m tests.models [name ...]``: build models into the cache and print their paths."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.models import (
    KINDS,
    PROJECTORS,
    TRAITS,
    UnavailableError,
    bench_model,
    broken,
    float_guide,
    projector,
    tiny,
)


def main(names: list[str]) -> int:
    """Build what ``names`` lists (all of it when empty); return the exit code."""
    known: dict[str, Callable[[], Path]] = {"bench": bench_model, "float-guide": float_guide}
    known |= {trait: partial(tiny, trait) for trait in TRAITS}
    known |= {f"projector-{kind}": partial(projector, kind) for kind in PROJECTORS}
    known |= {kind: partial(broken, kind) for kind in KINDS}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}", file=sys.stderr)
        return 2
    for name in names or known:
        try:
            print(f"{name}: {known[name]()}", flush=True)
        except UnavailableError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
