"""Runs `contract/` with real LMDeploy in its own environment; skipped where that is not there.

Level A holds signatures, B the adapter on the real AsyncEngine over a native part that is played
(so nothing here is inference), D the rules of the plan against those of the wheel. What only a GPU
can show is in `make test-gpu`.
"""

import os
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest

from tests.lmdeploy import environment
from tests.models.cache import UnavailableError

HERE = Path(__file__).parent / "contract"
ROOT = HERE.parents[2]
LEVELS = sorted(path.stem for path in HERE.glob("test_*.py"))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[Counter[str], list[str]]:
    """How many cases of each file ran, and what failed."""
    try:
        python = environment.python()
    except UnavailableError as error:
        pytest.skip(str(error))
    report = tmp_path_factory.mktemp("contract") / "report.xml"
    command = [str(python), "-m", "pytest", "-c", str(HERE / "pytest.ini"), str(HERE)]
    done = subprocess.run(
        [*command, f"--junitxml={report}", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT)],
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    assert report.exists(), done.stdout[-4000:] + done.stderr[-4000:]
    ran: Counter[str] = Counter()
    failed = []
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 - pytest's own
        level = next((part for part in str(case.get("classname")).split(".") if part in LEVELS), "")
        bad = [each for each in case if each.tag in ("failure", "error", "skipped")]
        ran[level] += not bad
        failed += [f"{level}: {case.get('name')}: {(each.text or '')[-2500:]}" for each in bad]
    return ran, failed


@pytest.mark.timeout(900)
@pytest.mark.parametrize("level", LEVELS)
def test_contract(outcome: tuple[Counter[str], list[str]], level: str) -> None:
    ran, failed = outcome
    assert not [text for text in failed if text.startswith(f"{level}:")]
    assert ran[level] > 0
