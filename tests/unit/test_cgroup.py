from pathlib import Path

import pytest

from edged.hardware.cgroup import Limits, read_limits

MIB = 1 << 20


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


def unified(
    cgroup: str = "0::/system.slice/edged.service", mounted_root: str = "/"
) -> dict[str, str]:
    mount = f"30 23 0:27 {mounted_root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
    return {
        "proc/self/cgroup": cgroup,
        "proc/self/mountinfo": f"1 0 0:1 / / rw - ext4 x rw\n{mount}",
    }


SERVICE = "sys/fs/cgroup/system.slice/edged.service"


def test_no_cgroups_mean_no_limits(tmp_path: Path) -> None:
    assert read_limits(tmp_path) == Limits()


def test_v2_limits_of_the_service(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            **unified(),
            f"{SERVICE}/memory.max": str(512 * MIB),
            f"{SERVICE}/memory.current": str(200 * MIB),
            f"{SERVICE}/memory.stat": f"anon 1\ninactive_file {50 * MIB}",
            f"{SERVICE}/cpu.max": "150000 100000",
        },
    )
    assert read_limits(root) == Limits(512 * MIB, 362 * MIB, 1.5)


def test_v2_max_means_no_limit(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {**unified(), f"{SERVICE}/memory.max": "max", f"{SERVICE}/cpu.max": "max 100000"},
    )
    assert read_limits(root) == Limits()


def test_smallest_limit_of_all_parents_counts(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            **unified("0::/a/b/c"),
            "sys/fs/cgroup/a/memory.max": str(300 * MIB),
            "sys/fs/cgroup/a/memory.current": str(290 * MIB),
            "sys/fs/cgroup/a/b/memory.high": str(400 * MIB),
            "sys/fs/cgroup/a/b/c/memory.max": str(500 * MIB),
            "sys/fs/cgroup/a/cpu.max": "400000 100000",
            "sys/fs/cgroup/a/b/cpu.max": "200000 100000",
            "sys/fs/cgroup/other/memory.max": "1",
        },
    )
    assert read_limits(root) == Limits(300 * MIB, 10 * MIB, 2.0)


def test_memory_high_is_a_limit(tmp_path: Path) -> None:
    root = write(tmp_path, {**unified(), f"{SERVICE}/memory.high": str(MIB)})
    assert read_limits(root).memory_bytes == MIB


def test_v1_hierarchies_are_followed_by_controller(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/x\n2:cpu,cpuacct:/docker/y\n1:name=systemd:/",
            "proc/self/mountinfo": (
                "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
                "35 31 0:32 / /sys/fs/cgroup/memory rw shared:1 - cgroup cgroup rw,memory\n"
                "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"
            ),
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": str(256 * MIB),
            "sys/fs/cgroup/memory/docker/x/memory.usage_in_bytes": str(56 * MIB),
            "sys/fs/cgroup/memory/docker/x/memory.stat": f"total_inactive_file {6 * MIB}",
            "sys/fs/cgroup/cpu,cpuacct/docker/y/cpu.cfs_quota_us": "50000",
            "sys/fs/cgroup/cpu,cpuacct/docker/y/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    )
    assert read_limits(root) == Limits(256 * MIB, 206 * MIB, 0.5)


def test_v1_limit_of_an_unseen_parent_counts(tmp_path: Path) -> None:
    root = write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/x",
            "proc/self/mountinfo": "35 1 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
            "sys/fs/cgroup/memory/x/memory.stat": f"hierarchical_memory_limit {64 * MIB}",
        },
    )
    assert read_limits(root).memory_bytes == 64 * MIB


@pytest.mark.parametrize(
    ("cgroup", "mounted_root"),
    [
        ("0::/docker/x", "/docker/x"),  # a container that sees only its part
        ("0::/docker/x", "/other"),
        ("0::/../../x", "/"),  # a path that leads out of the cgroup namespace
        ("0::/", "/"),
    ],
)
def test_mount_point_stands_in_for_a_group_out_of_sight(
    tmp_path: Path, cgroup: str, mounted_root: str
) -> None:
    root = write(tmp_path, {**unified(cgroup, mounted_root), "sys/fs/cgroup/memory.max": str(MIB)})
    assert read_limits(root).memory_bytes == MIB


@pytest.mark.parametrize(
    "text", ["", "\n", "x", "0::", "4:memory", "a - cgroup2", "1 2 3 4 - cgroup"]
)
def test_odd_files_mean_no_limits(tmp_path: Path, text: str) -> None:
    root = write(tmp_path, {"proc/self/cgroup": text, "proc/self/mountinfo": text})
    assert read_limits(root) == Limits()


def test_this_machine_has_an_answer() -> None:
    limits = read_limits()
    assert limits.memory_bytes is None or limits.memory_bytes > 0
