"""The box and its models; skipped where there is no GPU, or no LMDeploy."""

import subprocess
from pathlib import Path

import pytest

from edged.hardware import Hardware, detect
from tests.gpu.support import FORMS


@pytest.fixture(scope="session")
def box() -> Hardware:
    found = detect()
    if not found.gpus:
        pytest.skip(f"no GPU: {'; '.join(found.notes)}")
    if found.engines.lmdeploy_python is None:
        pytest.skip(f"no LMDeploy: {'; '.join(found.notes)}")
    return found


@pytest.fixture(scope="session")
def folders(box: Hardware, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    script = Path(__file__).with_name("models.py")
    for form in FORMS:
        command = [str(box.engines.lmdeploy_python), str(script), str(place / form)]
        subprocess.run([*command, *(["awq"] * (form == "awq"))], check=True, timeout=300)
    return place
