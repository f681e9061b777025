"""The source of the installed llama-cpp-python, with the llama.cpp it was built from.

It holds the vocabulary-only GGUF files that the models here use, and the source of llama-server,
the benchmark's peer: both sides of a benchmark run the same llama.cpp.
"""

import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path

from tests.models.cache import UnavailableError, build_once

PACKAGE = "llama-cpp-python"
DOWNLOAD_LIMIT_S = 900


def llama_cpp_version() -> str:
    """Return the version of the installed llama-cpp-python."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise UnavailableError(f"{PACKAGE} is not installed here") from None


def llama_cpp_source() -> Path:
    """Return the folder of the sdist of the installed version, fetched by pip on first use."""
    version = llama_cpp_version()
    return build_once(f"llama_cpp_python-{version}", lambda path: _fetch(version, path))


def llama_cpp_vocabulary(name: str) -> Path:
    """Return llama.cpp's vocabulary-only GGUF file ``name``, such as ``qwen2``."""
    return llama_cpp_source() / "vendor/llama.cpp/models" / f"ggml-vocab-{name}.gguf"


def _fetch(version: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", PACKAGE, "--dest", scratch, f"{PACKAGE}=={version}"]
        try:
            subprocess.run(
                command, check=True, capture_output=True, text=True, timeout=DOWNLOAD_LIMIT_S
            )
            (archive,) = Path(scratch).glob("*.tar.gz")
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
            reason = said[-1] if said else type(error).__name__
            raise UnavailableError(
                f"pip could not fetch the source of {PACKAGE} {version}: {reason}"
            ) from error
        unpacked = Path(scratch) / "unpacked"
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        (folder,) = unpacked.iterdir()
        folder.rename(path)
