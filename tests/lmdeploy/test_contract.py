"""Runs `contract` and `native` with real LMDeploy in its own environment; skipped where it is not.

Level A holds signatures, B the adapter on the real AsyncEngine over a native part that is played
(so nothing here is inference), D the rules of the plan against those of the wheel. C (`native`) has
the real native module, which loads with the libraries of `stubs.py`, and plays what is behind it.
What only a GPU can show is in `make test-gpu`.
"""

import os
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest

from tests.lmdeploy import environment, stubs
from tests.models.cache import UnavailableError

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LEVELS = sorted(path.stem for path in (HERE / "contract").glob("test_*.py"))
NATIVE_LEVELS = sorted(path.stem for path in (HERE / "native").glob("test_*.py"))
Outcome = tuple[Counter[str], list[str]]


def run(folder: Path, report: Path, *, libraries: Path | None = None) -> Outcome:
    """Return how many cases of each file ran, and what failed."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    if libraries is not None:
        env["LD_LIBRARY_PATH"] = str(libraries)
    ini = HERE / "contract/pytest.ini"
    done = subprocess.run(
        [
            *(str(environment.python()), "-m", "pytest", "-c", str(ini), str(folder)),
            *(f"--junitxml={report}", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT)),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
        cwd=ROOT,
        env=env,
    )
    assert report.exists(), done.stdout[-4000:] + done.stderr[-4000:]
    ran: Counter[str] = Counter()
    failed = []
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - pytest's own
        parts = str(case.get("classname")).split(".")
        level = next((part for part in parts if part in LEVELS + NATIVE_LEVELS), "")
        bad = [each for each in case if each.tag in ("failure", "error", "skipped")]
        ran[level] += not bad
        failed += [f"{level}: {case.get('name')}: {(each.text or '')[-2500:]}" for each in bad]
    return ran, failed


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    try:
        return run(HERE / "contract", tmp_path_factory.mktemp("contract") / "report.xml")
    except UnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def native_outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("stubs")
    try:
        libraries = stubs.write(folder, environment.python())
        return run(HERE / "native", folder / "report.xml", libraries=libraries)
    except UnavailableError as error:
        pytest.skip(str(error))


def check(outcome: Outcome, level: str) -> None:
    ran, failed = outcome
    assert not [text for text in failed if text.startswith((f"{level}:", ":"))]
    assert ran[level] > 0


@pytest.mark.timeout(900)
@pytest.mark.parametrize("level", LEVELS)
def test_contract(outcome: Outcome, level: str) -> None:
    check(outcome, level)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("level", NATIVE_LEVELS)
def test_native(native_outcome: Outcome, level: str) -> None:
    check(native_outcome, level)


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("native_outcome")
def test_stubs_stay_where_nobody_else_looks() -> None:
    """With them LMDeploy would take this box for one with a GPU."""
    own = environment.python().parents[1]
    assert not [path for name in stubs.LIBRARIES for path in own.rglob(name)]
