"""Unpacks wheels of several Pythons into one site directory: fat-site.py LOCK DEST WHEEL_FOLDER...

Extension modules carry their Python in the file name, so the trees can lie side by side. Two
different contents for one path end it, apart from what says only how a wheel was built.

The date of a Python file is made from the name and version of its package: while they stay, so does
its byte code, which an upgrade of edged then need not make anew.
"""

from __future__ import annotations

import os
import re
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath

# Data of wheels that no import needs: headers, cmake files, a second copy of llama.cpp's libraries.
UNWANTED = {"bin", "lib", "lib64", "include", "share"}
LATEST = 1_500_000_000  # s since 1970; older than any build, so that dpkg-deb leaves it as it is
SPAN = 6 * 365 * 86400


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
        date = LATEST - zlib.crc32(f"{name}=={version}".encode()) % SPAN
        clashes += [f"{wheel.name}: {path}" for path in unpack(wheel, Path(dest), date)]
    missing = sorted(set(pinned) - taken)
    for problem in [*(f"no wheel of {name}" for name in missing), *clashes]:
        print(f"fat-site: {problem}", file=sys.stderr)
    return 1 if missing or clashes else 0


def unpack(wheel: Path, dest: Path, date: int) -> list[str]:
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
                os.utime(out, (date, date))
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
