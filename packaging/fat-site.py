"""Unpacks wheels of several Pythons into one site directory: fat-site.py LOCK DEST WHEEL_FOLDER...

Extension modules carry their Python in the file name, so the trees can lie side by side. Two
different contents for one path end it, apart from what says only how a wheel was built.
"""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path, PurePosixPath

# Data of wheels that no import needs: headers, cmake files, a second copy of llama.cpp's libraries.
UNWANTED = {"bin", "lib", "lib64", "include", "share"}


def main(lock: str, dest: str, *folders: str) -> int:
    """Unpack; returns the exit code."""
    pinned = dict(line.split("==") for line in Path(lock).read_text().split() if "==" in line)
    wheels = sorted(wheel for folder in folders for wheel in Path(folder).glob("*.whl"))
    taken, clashes = set(), []
    for wheel in wheels:
        name, version = wheel.name.split("-")[:2]
        name = re.sub(r"[-_.]+", "-", name).lower()
        if pinned.get(name) != version:
            continue
        taken.add(name)
        clashes += [f"{wheel.name}: {path}" for path in unpack(wheel, Path(dest))]
    missing = sorted(set(pinned) - taken)
    for problem in [*(f"no wheel of {name}" for name in missing), *clashes]:
        print(f"fat-site: {problem}", file=sys.stderr)
    return 1 if missing or clashes else 0


def unpack(wheel: Path, dest: Path) -> list[str]:
    """Unpack one wheel; return the paths that are there already with another content."""
    clashes = []
    with zipfile.ZipFile(wheel) as archive:
        for member in sorted(archive.namelist()):
            path = PurePosixPath(member)
            if path.match("bin/libggml-*.so"):  # llama.cpp looks for its modules beside its library
                path = PurePosixPath("llama_cpp/lib", path.name)
            if member.endswith("/") or path.parts[0] in UNWANTED:
                continue
            if path.parts[0].endswith(".data"):
                if path.parts[1] not in {"purelib", "platlib"}:
                    continue
                path = PurePosixPath(*path.parts[2:])
            out, content = dest / path, archive.read(member)
            if not out.exists():
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_bytes(content)
            elif out.read_bytes() != content and not says_only_how_it_was_built(path):
                clashes.append(str(path))
    return clashes


def says_only_how_it_was_built(path: PurePosixPath) -> bool:
    """Whether the file may differ between the wheels of one version."""
    in_info = path.parts[0].endswith(".dist-info")
    return path == PurePosixPath("numpy/__config__.py") or (
        in_info and (path.name in {"RECORD", "WHEEL"} or "sboms" in path.parts)
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
