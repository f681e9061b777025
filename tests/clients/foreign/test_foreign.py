"""Foreign clients against a running daemon, each in its own environment (`make test-clients`).

Each set is one test here; what its own runner tested is told as subtests. Everything that the
daemon sent meanwhile is then held against the published types (`tests/clients/published.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree as ET

import httpx
import pytest

from tests.clients.conftest import eventually
from tests.clients.description import BODIES, openapi
from tests.clients.foreign import environments
from tests.clients.published import problems
from tests.clients.recorder import Recorder
from tests.models import UnavailableError

Built = TypeVar("Built")
RUN_LIMIT_S = 300
MODEL_OF = {"/v1/embeddings": ["embedder"], "/v1/rerank": ["reranker"]}
PYTHON = environments.HERE / "python"
NODE_FILES = sorted(
    path.stem.removeprefix("check_") for path in environments.NODE.glob("check_*.mjs")
)


@pytest.mark.timeout(environments.INSTALL_LIMIT_S + RUN_LIMIT_S)
@pytest.mark.parametrize("name", environments.python_sets())
def test_python_client(
    name: str, appliance: str, tmp_path: Path, subtests: pytest.Subtests
) -> None:
    python = _built(lambda: environments.python_of(name))
    if name == "schemathesis":
        described = openapi({path: MODEL_OF.get(path, ["edge-guide"]) for path in BODIES})
        (tmp_path / "openapi.json").write_text(json.dumps(described))
    results = tmp_path / "results.xml"
    checks = PYTHON / f"check_{name.replace('-', '_')}.py"
    if not checks.exists():  # several versions of one client may share their checks
        checks = PYTHON / f"check_{name.rpartition('-')[0]}.py"
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", str(checks)]
    command += ["-c", str(PYTHON / "pytest.ini"), f"--junitxml={results}"]
    with Recorder(appliance) as recorder:
        said = _run(command, recorder.url, tmp_path)
    _judge(results, said, recorder, subtests)
    _nothing_is_left(appliance)


@pytest.mark.timeout(environments.INSTALL_LIMIT_S + RUN_LIMIT_S)
@pytest.mark.parametrize("name", NODE_FILES)
def test_node_client(name: str, appliance: str, tmp_path: Path, subtests: pytest.Subtests) -> None:
    node, modules = _built(environments.node_modules)
    # Node finds packages beside the file that asks for them.
    checks = Path(shutil.copy(environments.NODE / f"check_{name}.mjs", tmp_path))
    shutil.copy(environments.NODE / "appliance.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(modules)
    results = tmp_path / "results.xml"
    command = [str(node), "--test", "--test-reporter=junit"]
    command += [f"--test-reporter-destination={results}", str(checks)]
    with Recorder(appliance) as recorder:
        said = _run(command, recorder.url, tmp_path)
    _judge(results, said, recorder, subtests)
    _nothing_is_left(appliance)


def _built(build: Callable[[], Built]) -> Built:
    try:
        return build()
    except UnavailableError as error:
        pytest.skip(str(error))


def _run(command: list[str], url: str, folder: Path) -> str:
    """Run a client's tests and return what they printed."""
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    kept = {k: v for k, v in kept.items() if not k.startswith(("OPENAI_", "ANTHROPIC_", "PYTEST_"))}
    # No client may look beyond this machine, or tell anyone that it ran.
    quiet = {
        "AI_SDK_LOG_WARNINGS": "false",
        "DO_NOT_TRACK": "1",
        "LANGSMITH_TRACING": "false",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    output = folder / "output"
    with output.open("wb") as sink:
        try:
            code = subprocess.run(
                command,
                cwd=folder,
                env=kept | quiet | {"EDGED_URL": url, "HOME": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                timeout=RUN_LIMIT_S,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    said = output.read_text(errors="replace")
    return f"exit code {code}\n{said}" if code is not None else f"not done in time\n{said}"


def _judge(results: Path, said: str, recorder: Recorder, subtests: pytest.Subtests) -> None:
    if not results.exists():
        pytest.fail(said, pytrace=False)
    cases = list(ET.parse(results).iter("testcase"))  # noqa: S314 - written a moment ago
    assert cases, said
    for case in cases:
        with subtests.test(msg=case.get("name")):
            for failure in [*case.iter("failure"), *case.iter("error")]:
                pytest.fail(failure.text or failure.get("message") or said, pytrace=False)
            for skipped in case.iter("skipped"):
                pytest.skip(skipped.get("message") or skipped.text or "no reason given")
    exchanges = recorder.exchanges()
    with subtests.test(msg="everything is of the published types"):
        assert any(exchange.whole for exchange in exchanges)
        found = {line for exchange in exchanges for line in problems(exchange)}
        if found:
            pytest.fail("\n".join(sorted(found)[:50]), pytrace=False)
    with subtests.test(msg="no answer is a server error"):
        assert [str(each) for each in exchanges if each.status >= 500] == []
    assert "exit code 0" in said or "failure" in results.read_text(), said


def _nothing_is_left(appliance: str) -> None:
    """Whoever left, left nothing open behind."""

    def open_requests() -> int:
        status = httpx.get(f"{appliance}/status", trust_env=False).json()
        return sum(model["open"] for model in status["models"])

    assert eventually(lambda: open_requests() == 0)
