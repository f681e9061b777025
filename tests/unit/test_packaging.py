"""What the package carries beside the program agrees with the program, and its tools accept it."""

from __future__ import annotations

import py_compile
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from edged.cli import serve
from edged.cli.app import app

ROOT = Path(__file__).parent.parent.parent
DEB = ROOT / "packaging/deb"
UNITS = ROOT / "systemd"


Words = tuple[str, ...]


def words(command: object, path: Words = ()) -> Iterator[tuple[Words, set[str]]]:
    """Yield each command with what may follow: commands below it, and its long options."""
    below = getattr(command, "commands", {})
    options = {
        option
        for each in getattr(command, "params", ())
        if not getattr(each, "hidden", False)
        for option in each.opts
        if option.startswith("--")
    }
    yield path, {*below, *options, "--help"}
    for name, each in below.items():
        yield from words(each, (*path, name))


WORDS = dict(words(typer.main.get_command(app)))


def completed(*line: str) -> set[str]:
    """Return what bash offers for the last word of the line."""
    script = (
        f'source "{DEB}/completion.bash"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _edged; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", *line],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=UNITS,
    )
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize("path", WORDS, ids=" ".join)
def test_completion_offers_what_the_program_takes(path: tuple[str, ...]) -> None:
    wanted = WORDS[path]
    if path == ("serve",):  # it reads its own options
        source = Path(serve.__file__).read_text()
        wanted = {*re.findall(r'^ .*"(--[a-z-]+)"', source, re.MULTILINE), "--help"}
    assert completed("edged", *path, "") == wanted


def test_completion_narrows_and_falls_back_to_files() -> None:
    assert completed("edged", "key", "ro") == {"rotate"}
    assert completed("edged", "key", "add", "anna", "--ne") == {"--networks"}
    assert completed("edged", "check", "--config", "edged.s") == {"edged.service", "edged.socket"}


def test_manual_names_every_command() -> None:
    page = re.sub(r"\\(.)", r"\1", (DEB / "edged.1").read_text())
    commands = page.partition(".SH COMMANDS")[2].partition(".SH FILES")[0]
    for path in WORDS:
        for name in path:
            assert re.search(rf"^\.BR? .*\b{name}\b", commands, re.MULTILINE), name


@pytest.mark.parametrize("page", ["edged.1", "models.toml.5"])
@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_manual_page_is_without_faults(page: str) -> None:
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", str(DEB / page)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("script", ["postinst", "prerm", "postrm", "cuda-reload"])
def test_maintainer_script_is_posix_and_stops_at_faults(script: str) -> None:
    text = (DEB / script).read_text()
    assert text.startswith("#!/bin/sh\nset -e\n")
    subprocess.run(["sh", "-n", str(DEB / script)], check=True, timeout=60)


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="systemd is not installed")
def test_user_is_made_with_the_groups_of_gpus(tmp_path: Path) -> None:
    """In a root of its own, which has nothing yet: `render` does not exist everywhere."""
    (tmp_path / "etc").mkdir()
    for _ in range(2):  # the second time changes nothing
        done = subprocess.run(
            ["systemd-sysusers", f"--root={tmp_path}", str(DEB / "sysusers.conf")],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if "Permission denied" in done.stderr or "Operation not permitted" in done.stderr:
            pytest.skip("making users of another root needs root here")
        assert done.returncode == 0, done.stderr
    user = re.search(r"^edged:.*$", (tmp_path / "etc/passwd").read_text(), re.MULTILINE)
    assert user
    assert user[0].endswith("/var/lib/edged:/usr/sbin/nologin")
    groups = (tmp_path / "etc/group").read_text()
    assert re.search(r"^render:.*:edged$", groups, re.MULTILINE)
    assert re.search(r"^video:.*:edged$", groups, re.MULTILINE)


def test_every_example_of_the_units_is_packed_and_named() -> None:
    make, operations = (
        (ROOT / path).read_text() for path in ("packaging/make-deb", "docs/operations.md")
    )
    for path in (*UNITS.glob("*.conf"), UNITS / "edged-https.socket"):
        assert f"systemd/{path.name}" in make
        assert path.name in operations
        head = path.read_text().partition("\n[")[0]
        assert f"/usr/share/doc/edged/examples/{path.name}" in head, "its head says how"


def test_each_directive_that_is_left_out_has_its_reason() -> None:
    """What `systemd-analyze security` would like besides is explained in the unit itself."""
    unit = UNITS / "edged.service"
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    missing = re.findall(r"^✗ (\w+)", done.stdout, re.MULTILINE)
    assert missing, done.stdout
    text = unit.read_text()
    for name in missing:
        assert re.search(rf"^#   .*{name}", text, re.MULTILINE), f"{name}: why is it left out?"


# ── byte code over upgrades ──


def dates_of_site(folder: Path, **versions: str) -> dict[str, float]:
    """Make a wheel of each package, unpack them as the package does; return the files' dates."""
    folder.mkdir()
    (folder / "lock").write_text("".join(f"{n}=={v}\n" for n, v in versions.items()))
    for name, version in versions.items():
        with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", f"version = {version!r}\n")
    tool = ROOT / "packaging/fat-site.py"
    command = [sys.executable, tool, folder / "lock", folder / "site", folder]
    subprocess.run(command, check=True, timeout=60)
    return {name: (folder / "site" / name / "__init__.py").stat().st_mtime for name in versions}


def test_date_of_a_library_changes_with_its_version_only(tmp_path: Path) -> None:
    """By dates, Python and py3compile tell whether byte code is still good."""
    before = dates_of_site(tmp_path / "a", one="1.0", two="2.0")
    after = dates_of_site(tmp_path / "b", one="1.0", two="2.1")
    assert before["one"] == after["one"]
    assert before["two"] != after["two"]
    assert max(*before.values(), *after.values()) <= 1_500_000_000


def test_byte_code_that_is_good_for_nothing_goes(tmp_path: Path) -> None:
    def compiled(path: str, tag: str = sys.implementation.cache_tag) -> Path:
        source = tmp_path / path
        source.parent.mkdir(parents=True, exist_ok=True)
        source.touch()
        target = source.parent / "__pycache__" / f"{source.stem}.{tag}.pyc"
        return Path(str(py_compile.compile(str(source), cfile=str(target))))

    good, other = compiled("a/b.py"), compiled("a/b.py", "cpython-27")
    gone = compiled("a/gone/deep/c.py")
    (tmp_path / "a/gone/deep/c.py").unlink()
    done = [sys.executable, "-I", str(DEB / "forget-byte-code"), str(tmp_path)]
    subprocess.run(done, check=True, timeout=60)
    assert good.exists()
    assert not other.exists()
    assert not gone.exists()
    assert not (tmp_path / "a/gone").exists(), "dpkg could not remove it"
