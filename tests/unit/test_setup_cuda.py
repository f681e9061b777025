"""`edged setup-cuda` with real environments and a real pip, on wheels of a few bytes."""

import base64
import functools
import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from msgspec.structs import replace

from edged import hardware
from edged.cli import checks, setup_cuda
from edged.config import Config
from edged.cuda import installing
from edged.cuda.installing import Setup, SetupError, Went
from edged.hardware import Cpu, Gpu, Hardware, Memory, cuda

GIB = 1 << 30
FOREIGN = "colorama 0.4.6"
GPU = Gpu(0, "RTX 4090", 24 * GIB, 24 * GIB, (8, 9), "550.54")
BOX = Hardware(Cpu("", "x86_64", 4, 4, 4), Memory(32 * GIB, 32 * GIB, 32 * GIB), (GPU,))


def wheel(house: Path, name: str, version: str, files: dict[str, str]) -> str:
    """Write a wheel and return its digest."""
    house.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    files = files | {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    path = house / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, text in files.items():
            archive.writestr(zipfile.ZipInfo(file), text, zipfile.ZIP_DEFLATED)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
            rows.append(f"{file},sha256={digest.rstrip(b'=').decode()},{len(text.encode())}")
        archive.writestr(
            zipfile.ZipInfo(f"{info}/RECORD"), "\n".join([*rows, f"{info}/RECORD,,"]) + "\n"
        )
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Wheels:
    """A house with what stands for torch and LMDeploy, and the lock of them."""

    def __init__(self, folder: Path, why: str = "", ballast: int = 0) -> None:
        self.house = folder / "house"
        self.state = folder / "state"
        self.lock = folder / "requirements.lock"
        # what a worker needs beside them comes from the environment of these tests
        own = sysconfig.get_paths()["purelib"]
        native = f"_import_error = {why!r}\ndef is_available(): return not _import_error\n"
        self.digests = {
            "torch": wheel(self.house, "torch", "2.10.0", {"torch.py": "__version__ = '2.10.0'\n"}),
            "tokenizers": wheel(self.house, "tokenizers", "1.0", {
                "tokenizers.py": "class Tokenizer: ...\n", "tests-of-edged.pth": f"{own}\n"}),
            "lmdeploy": wheel(self.house, "lmdeploy", "0.18.0", {
                "lmdeploy/__init__.py": "__version__ = '0.18.0'\n",
                "lmdeploy/ballast": "0" * ballast,
                "lmdeploy/turbomind.py": native}),
        }  # fmt: skip
        self.write_lock()
        self.told: list[Went] = []

    def write_lock(self) -> None:
        versions = {"torch": "2.10.0", "tokenizers": "1.0", "lmdeploy": "0.18.0"}
        self.lock.write_text(
            "".join(
                f"{name}=={version} \\\n    --hash=sha256:{self.digests[name]}\n"
                for name, version in versions.items()
            )
            # for another system, as the real one has some
            + f"colorama==0.4.6 ; sys_platform == 'win32' \\\n    --hash=sha256:{'0' * 64}\n"
        )

    def setup(self) -> Setup:
        self.told.clear()
        return Setup(self.state, wheelhouse=self.house, lock=self.lock, tell=self.told.append)

    @property
    def packages(self) -> Path:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return self.state / f"cuda-py{version}/lib/python{version}/site-packages"

    @property
    def done(self) -> list[str]:
        return [went.doing for went in self.told]


@pytest.fixture
def wheels(tmp_path: Path) -> Wheels:
    return Wheels(tmp_path)


def test_environment_is_made_signed_and_found(wheels: Wheels) -> None:
    setup = wheels.setup()
    setup.install()
    unsigned = cuda.find([wheels.state])
    assert unsigned is not None
    assert unsigned.problem is not None
    assert "is not complete" in unsigned.problem
    stamp = setup.verify(trial_on=None)
    assert (stamp.lmdeploy, stamp.torch, stamp.verified) == ("0.18.0", "2.10.0", "import")
    found = cuda.find([wheels.state / "nothing", wheels.state])
    assert found is not None
    assert (found.problem, found.stamp) == (None, stamp)
    assert f"cuda-py{sys.version_info.major}.{sys.version_info.minor}" in found.folder
    where = "import edged, tokenizers; print(edged.__file__, tokenizers.__file__)"
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    shown = subprocess.run(
        [found.python, "-c", where], capture_output=True, text=True, check=True, env=env, cwd="/"
    ).stdout.split()
    assert all(path.startswith(found.folder) for path in shown)  # edged by its link
    assert Path(shown[0]).resolve() == Path(installing.__file__).parents[1] / "__init__.py"
    # A Python that is gone, and an edged that is.
    (Path(found.folder) / "bin/python").unlink()
    assert "has lost its Python" in str(cuda.find([wheels.state]))


def test_broken_off_setup_goes_on(wheels: Wheels) -> None:
    digest, wheels.digests["torch"] = wheels.digests["torch"], "0" * 64
    wheels.write_lock()
    with pytest.raises(SetupError, match=r"torch 2\.10\.0 cannot be installed"):
        wheels.setup().install()  # foreign bytes under a known name
    wheels.digests["torch"] = digest
    wheels.write_lock()
    absent = wheels.house / "lmdeploy-0.18.0-py3-none-any.whl"
    kept = absent.read_bytes()
    absent.unlink()
    with pytest.raises(SetupError, match=r"lmdeploy 0\.18\.0 cannot be installed: .*No matching"):
        wheels.setup().install()
    assert wheels.done == ["torch 2.10.0", "tokenizers 1.0", "lmdeploy 0.18.0"]
    absent.write_bytes(kept)
    wheels.setup().install()
    assert wheels.done == ["lmdeploy 0.18.0", FOREIGN, "installed"]
    # pip was killed in the middle of a package, and a package was damaged since
    packages = wheels.packages
    (packages / "lmdeploy-0.18.0.dist-info/INSTALLER").unlink()
    (packages / "lmdeploy/turbomind.py").unlink()
    wheels.setup().install()
    assert wheels.done == ["lmdeploy 0.18.0", FOREIGN, "installed"]
    assert (packages / "lmdeploy/turbomind.py").exists()
    assert not list(wheels.setup().folder.glob("tmp*"))


def test_environment_that_never_got_its_pip_is_made_anew(wheels: Wheels) -> None:
    venv.create(wheels.setup().folder, with_pip=False)
    wheels.setup().install()
    assert wheels.done[-1] == "installed"
    assert (wheels.packages / "torch.py").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a small disk")
def test_disk_that_fills_up(tmp_path: Path) -> None:
    wheels = Wheels(tmp_path, ballast=96 << 20)
    wheels.state.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(wheels.state)], check=False
    ).returncode:
        pytest.skip("this box lets nobody mount")
    try:
        with pytest.raises(SetupError, match=r"lmdeploy 0\.18\.0 cannot be.*No space left"):
            wheels.setup().install()
        assert cuda.find([wheels.state]) is not None
        assert "is not complete" in str(cuda.find([wheels.state]))
        subprocess.run(["mount", "-o", "remount,size=300m", str(wheels.state)], check=True)
        wheels.setup().install()
        assert wheels.done[0] == "lmdeploy 0.18.0"
        wheels.setup().verify(trial_on=None)
    finally:
        subprocess.run(["umount", str(wheels.state)], check=True)


def test_engine_that_does_not_load_is_not_signed(tmp_path: Path) -> None:
    wheels = Wheels(tmp_path, why="libcuda.so.1: cannot open shared object file")
    setup = wheels.setup()
    setup.install()
    with pytest.raises(SetupError, match=r"native module does not load: libcuda\.so\.1"):
        setup.verify(trial_on=None)
    assert not (setup.folder / cuda.STAMP).exists()
    assert installing.remove(wheels.state) == [setup.folder]
    assert cuda.find([wheels.state]) is None
    assert installing.remove(wheels.state) == []


# ── what is looked at first ──


def test_good_box_passes(wheels: Wheels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installing, "_NEEDED_BYTES", 1)
    assert wheels.setup().check(BOX) == GPU
    fuller, old = replace(GPU, index=1, free_bytes=GIB), replace(GPU, compute_capability=(6, 1))
    roomy = replace(GPU, index=2, free_bytes=GPU.free_bytes + 1)
    assert wheels.setup().check(replace(BOX, gpus=(old, fuller, GPU, roomy))) == roomy


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (replace(BOX, gpus=(), notes=("NVML does not start: x",)), "no NVIDIA GPU.*NVML does not"),
        (replace(BOX, gpus=(replace(GPU, compute_capability=(6, 1)),)), "no machine code for RTX"),
        (replace(BOX, gpus=(replace(GPU, driver="470.1"),)), "driver is 470.1; LMDeploy needs 525"),
        (replace(BOX, cpu=replace(BOX.cpu, architecture="aarch64")), "no wheels for aarch64"),
    ],
)
def test_box_that_cannot_use_it(
    wheels: Wheels, monkeypatch: pytest.MonkeyPatch, box: Hardware, expected: str
) -> None:
    monkeypatch.setattr(installing, "_NEEDED_BYTES", 1)
    with pytest.raises(SetupError, match=expected):
        wheels.setup().check(box)
    assert not wheels.state.exists()


def test_full_disk_and_empty_house(
    wheels: Wheels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installing, "_NEEDED_BYTES", 1 << 60)
    with pytest.raises(SetupError, match="are needed"):
        wheels.setup().check(BOX)
    monkeypatch.setattr(installing, "_NEEDED_BYTES", 1)
    with pytest.raises(SetupError, match="has no wheels"):
        Setup(wheels.state, wheelhouse=tmp_path).check(BOX)


# ── the lock ──


def test_lock_is_one_cuda_with_a_digest_for_everything() -> None:
    packages = installing.requirements()
    assert all("--hash=sha256:" in package.text for package in packages)
    versions = {package.name: package.version for package in packages}
    assert versions["torch"] == "2.10.0"
    assert versions["lmdeploy"].startswith("0.18.")
    assert {"jinja2", "msgspec", "structlog", "uvloop", "tokenizers", "pillow"} <= set(versions)
    assert not [name for name in versions if name.endswith(("-cu11", "-cu13"))]


# ── the command ──


def test_command_tells_how_far_it_is_and_what_fails(
    wheels: Wheels,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(installing, "_NEEDED_BYTES", 1)
    monkeypatch.setattr(setup_cuda, "Setup", functools.partial(Setup, lock=wheels.lock))
    monkeypatch.setattr(setup_cuda, "state_folder", lambda _: wheels.state)
    monkeypatch.setattr(setup_cuda, "load_config", lambda _: Config(path="models.toml"))
    monkeypatch.setattr(hardware, "detect", lambda _: BOX)
    with pytest.raises(typer.Exit):  # these wheels compute nothing
        setup_cuda.setup_cuda(wheelhouse=wheels.house)
    said = capsys.readouterr().err
    assert "0/4 torch 2.10.0" in said
    assert "generating a token on GPU 0 (RTX 4090)" in said
    assert "edged: no token can be generated on GPU 0 (RTX 4090): " in said
    assert not (wheels.setup().folder / cuda.STAMP).exists()
    monkeypatch.setattr(Setup, "verify", functools.partialmethod(_without_gpu, Setup.verify))
    setup_cuda.setup_cuda(wheelhouse=wheels.house)
    shown = capsys.readouterr()
    assert "LMDeploy 0.18.0 with torch 2.10.0 is in " in shown.out
    assert "torch 2.10.0\n" not in shown.err  # it was there
    setup_cuda.setup_cuda(remove_=True)
    assert "is gone." in capsys.readouterr().out


def _without_gpu(setup: Setup, verify: Any, *, trial_on: Gpu | None) -> cuda.Stamp:
    assert trial_on == GPU
    stamp: cuda.Stamp = verify(setup, trial_on=None)
    return stamp


def edged(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "models.toml").write_text('[hardware]\ngpus = "none"\n')
    return subprocess.run(
        [sys.executable, "-m", "edged", "setup-cuda", *arguments],
        env=os.environ
        | {
            "STATE_DIRECTORY": str(tmp_path / "state"),
            "EDGED_CONFIG": str(tmp_path / "models.toml"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_command_on_a_box_without_a_gpu(tmp_path: Path) -> None:
    ran = edged(tmp_path)
    assert ran.returncode == 1
    assert "edged: there is no NVIDIA GPU that can be used" in ran.stderr
    folder = tmp_path / f"state/cuda-py{sys.version_info.major}.{sys.version_info.minor}"
    folder.mkdir(parents=True)
    (folder / cuda.STAMP).write_bytes(
        msgspec.json.encode(cuda.Stamp("3.11", "0.18.0", "2.10.0", "", "gpu"))
    )
    removed = edged(tmp_path, "--remove")
    assert (removed.returncode, folder.exists()) == (0, False)
    assert f"{folder} is gone." in removed.stdout


def test_doctor_names_the_command() -> None:
    gpu = {"name": "RTX 4090"}
    hardware: dict[str, Any] = {
        "memory": {"available_bytes": GIB, "limit_bytes": GIB},
        "engines": {"llamacpp": "1", "lmdeploy": None, "lmdeploy_python": None},
        "gpus": [gpu],
        "notes": [],
    }
    found = [each for each in checks._hardware({"hardware": hardware}) if each.about == "GPU"]
    assert [(each.level, each.mend) for each in found] == [("note", "edged setup-cuda")]
    hardware["engines"] = {"llamacpp": "1", "lmdeploy": "0.18.0", "lmdeploy_python": "/python"}
    shown = {each.about: each.text for each in checks._hardware({"hardware": hardware})}
    assert (shown["GPU"], shown["engines"]) == ("RTX 4090", "llamacpp 1, lmdeploy 0.18.0")
