"""LMDeploy without a GPU: an environment for the contract tests, built once into the cache.

1.6 GB and a minute or two, so it is built only when `EDGED_TEST_LMDEPLOY=1` says so; one that is
there is always used. pip's own settings (mirror, proxy, certificates) are respected.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

from tests.models.cache import UnavailableError, build_once, cache_dir

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
SWITCH = "EDGED_TEST_LMDEPLOY"
_INSTALL_LIMIT_S = 1800
_IMPORTS = "import lmdeploy, lmdeploy.serve.core, torch, tokenizers, xgrammar, pytest"


def python() -> Path:
    """Return the interpreter of the environment; raises UnavailableError with the reason."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    name = f"lmdeploy-{digest}"
    if not (cache_dir() / name).exists() and os.environ.get(SWITCH) != "1":
        raise UnavailableError(
            f"LMDeploy's environment is not in {cache_dir()}; {SWITCH}=1 builds it (1.6 GB)"
        )
    return build_once(name, _install) / "bin/python"


def _install(path: Path) -> None:
    venv.create(path, with_pip=True)
    own = str(path / "bin/python")
    pip = [own, "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    _run([*pip, "--no-deps", "--requirement", str(REQUIREMENTS)], "pip could not install it")
    _run([own, "-c", _IMPORTS], "it does not import")


def _run(command: list[str], failure: str) -> None:
    try:
        subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=_INSTALL_LIMIT_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        raise UnavailableError(f"{failure}: {said[-1] if said else error!r}") from error
