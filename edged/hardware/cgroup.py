"""Memory and CPU limits that the control groups of this process impose; v1, v2 and both at once.

A limit anywhere between the process's group and the top of what is mounted counts, so a systemd
slice or a container around the service is seen too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct


class Limits(Struct, frozen=True):
    """What is allowed; None: no limit. `memory_left_bytes` is the least room below a limit."""

    memory_bytes: int | None = None
    memory_left_bytes: int | None = None
    cpus: float | None = None


def read_limits(root: Path = Path("/")) -> Limits:
    """Return the limits of this process; `root` holds proc, sys and the mount points."""
    memory: list[int] = []
    left: list[int] = []
    cpus: list[float] = []
    for group in _groups(root):
        for limit in (
            _number(group / "memory.max"),
            _number(group / "memory.high"),  # beyond it the kernel throttles us to a crawl
            _number(group / "memory.limit_in_bytes"),
            _field(group / "memory.stat", "hierarchical_memory_limit"),
        ):
            if limit is not None:
                memory.append(limit)
                left.append(max(0, limit - _used(group)))
        cpus += [share for share in (_cpu_v2(group), _cpu_v1(group)) if share is not None]
    return Limits(
        memory_bytes=min(memory, default=None),
        memory_left_bytes=min(left, default=None),
        cpus=min(cpus, default=None),
    )


def _groups(root: Path) -> Iterator[Path]:
    """Yield our groups of every mounted hierarchy, each with all its mounted ancestors."""
    ours = dict(_memberships(root))
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), [*after.split(), "", "", ""][:3]
        if kind not in ("cgroup", "cgroup2") or len(fields) < 5:  # noqa: PLR2004 - the mount point
            continue
        controllers = [""] if kind == "cgroup2" else options.split(",")
        path = next((ours[name] for name in controllers if name in ours), None)
        if path is None:
            continue
        mounted_root, mount_point = _unescape(fields[3]), _unescape(fields[4])
        top = root / mount_point.lstrip("/")
        group = top / _below(path, mounted_root)
        while True:
            yield group
            if group == top:
                break
            group = group.parent


def _memberships(root: Path) -> Iterator[tuple[str, str]]:
    """Yield controller → path; the controller of the v2 hierarchy is the empty string."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        for controller in controllers.split(","):
            yield controller, path


def _below(path: str, mounted_root: str) -> str:
    """Return the group's path below its mount point.

    In a container the mount may show only a part of the tree, or the path may lead out of it;
    then the mount point itself is the nearest group that we can see.
    """
    inside = path.removeprefix(mounted_root.rstrip("/"))
    if mounted_root != "/" and not path.startswith(mounted_root):
        return ""
    return "" if ".." in inside.split("/") else inside.lstrip("/")


def _used(group: Path) -> int:
    """Return the bytes in use that the kernel could not simply drop."""
    used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes") or 0
    stat = group / "memory.stat"
    droppable = _field(stat, "total_inactive_file") or _field(stat, "inactive_file") or 0
    return max(0, used - droppable)


def _cpu_v2(group: Path) -> float | None:
    quota, _, period = _text(group / "cpu.max").partition(" ")
    return _share(quota, period)


def _cpu_v1(group: Path) -> float | None:
    return _share(_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us"))


def _share(quota: str, period: str) -> float | None:
    """Return CPUs; `max` and -1 mean no limit."""
    if quota.isdecimal() and period.isdecimal() and int(period):
        return int(quota) / int(period)
    return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _field(path: Path, name: str) -> int | None:
    for line in _lines(path):
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return None


def _lines(path: Path) -> list[str]:
    return _text(path).splitlines()


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):  # absent controller, or a group that we may not look into
        return path.read_text(errors="replace").strip()
    return ""


def _unescape(field: str) -> str:
    return field.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
