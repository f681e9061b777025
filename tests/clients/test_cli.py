"""The command line as its users run it: processes, exit codes, what is printed."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from edged import __version__
from tests.clients.conftest import CONTEXT, LIMIT_S, MODELS_TOML, eventually, free_port

Ran = subprocess.CompletedProcess[str]


def edged(*arguments: str, stdin: str | None = None, **environment: str) -> Ran:
    return subprocess.run(
        [sys.executable, "-m", "edged", *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
        stdin=subprocess.DEVNULL if stdin is None else None,
        input=stdin,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"} | environment,
    )


def test_help_lists_the_commands() -> None:
    ran = edged("--help")
    assert ran.returncode == 0
    for name in ("serve", "check", "status", "models", "ask", "bench", "version", "reload"):
        assert name in ran.stdout
    ran = edged("serve", "--help")
    assert ran.returncode == 0
    assert "--config" in ran.stdout


def test_serving_process_loads_no_command_line_no_client_and_no_engine() -> None:
    code = (
        "import sys, edged.cli, edged.cli.serve, edged.daemon;"
        "print(*sorted({'typer', 'httpx', 'httpcore', 'llama_cpp', 'torch', 'numpy', 'gguf',"
        "'PIL'} "
        "& set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT_S
    )
    assert ran.stdout.strip() == ""


def test_version_is_shown() -> None:
    assert __version__ in edged("version").stdout
    assert json.loads(edged("version", "--json").stdout)["edged"] == __version__


@pytest.mark.parametrize(
    "arguments",
    [["dance"], ["serve", "--fast"], ["status", "--nope"], ["serve", "--log-level", "x"]],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    ran = edged(*arguments)
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    "command", [["status"], ["models"], ["ask", "hi"], ["status", "--json"], ["bench"]]
)
def test_daemon_that_does_not_answer_is_one_line_and_exit_code_1(command: list[str]) -> None:
    ran = edged(*command, "--url", f"http://127.0.0.1:{free_port()}")
    assert ran.returncode == 1
    [line] = ran.stderr.strip().splitlines()
    assert "does not answer" in line
    assert "edged serve" in line


def test_url_that_is_none_is_one_line_and_exit_code_1() -> None:
    ran = edged("status", "--url", "nonsense")
    assert (ran.returncode, len(ran.stderr.strip().splitlines())) == (1, 1)


def test_check_tells_every_problem_with_its_line(tmp_path: Path) -> None:
    config = tmp_path / "models.toml"
    config.write_text('[server]\nlisten = 7\n[models.a]\ngguff = "builtin:edge-guide"\n')
    ran = edged("check", "--config", str(config))
    assert ran.returncode == 78
    assert f"{config}:2: " in ran.stderr
    assert f"{config}:4: " in ran.stderr
    ran = edged("check", "--config", str(config), "--json")
    assert ran.returncode == 78
    found = json.loads(ran.stdout)
    assert found["ok"] is False
    assert {2, 4} <= {problem["line"] for problem in found["problems"]}


def test_serve_of_a_broken_file_is_exit_code_78(tmp_path: Path) -> None:
    config = tmp_path / "models.toml"
    config.write_text("[server\n")
    ran = edged("serve", "--config", str(config))
    assert ran.returncode == 78
    assert "models.toml:1" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_check_without_a_daemon_shows_the_plan(tmp_path: Path) -> None:
    config = tmp_path / "models.toml"
    config.write_text(MODELS_TOML.format(port=free_port(), context=CONTEXT))
    ran = edged("check", "--config", str(config))
    assert ran.returncode == 0
    assert "edge-guide" in ran.stdout
    assert "No daemon answers" in ran.stdout
    found = json.loads(edged("check", "--config", str(config), "--json").stdout)
    assert found["change"] is None
    assert found["models"][0]["name"] == "edge-guide"


def test_check_names_what_cannot_run(tmp_path: Path) -> None:
    config = tmp_path / "models.toml"
    config.write_text('[models.absent]\ngguf = "file:/no/such.gguf"\n')
    ran = edged("check", "--config", str(config))
    assert ran.returncode == 0
    assert "is valid, but cannot run absent." in ran.stdout.replace("\n", " ")
    assert "/no/such.gguf does not exist" in ran.stdout


def test_check_tells_what_would_change(daemon: str, tmp_path: Path) -> None:
    running = MODELS_TOML.format(port=daemon.rpartition(":")[2], context=CONTEXT)
    config = tmp_path / "models.toml"

    def change(text: str) -> dict[str, object]:
        config.write_text(text)
        ran = edged("check", "--config", str(config), "--json")
        return {k: v for k, v in json.loads(ran.stdout)["change"].items() if v}

    assert change(running) == {"unchanged": ["edge-guide"]}
    assert change(running.replace("temperature = 0.0", "temperature = 0.5")) == {
        "updated": ["edge-guide"]
    }
    assert change(running.replace(f"= {CONTEXT}", "= 512")) == {"replaced": ["edge-guide"]}
    assert change(running.replace("1MiB", "2MiB")) == {"unchanged": ["edge-guide"], "server": True}
    moved = running.replace("models.edge-guide", "models.other")
    assert change(moved) == {"added": ["other"], "removed": ["edge-guide"]}
    said = edged("check", "--config", str(config)).stdout
    assert "other" in said
    assert "remove edge-guide" in said


def test_status_and_models_show_what_runs(daemon: str) -> None:
    ran = edged("status", EDGED_URL=daemon)
    assert ran.returncode == 0, ran.stderr
    assert "edge-guide" in ran.stdout
    assert "ready" in ran.stdout
    assert "llamacpp" in ran.stdout
    found = json.loads(edged("status", "--json", "--url", daemon).stdout)
    assert found["models"][0]["state"] == "ready"
    settings = found["models"][0]["settings"]
    assert settings["threads"] >= 1
    assert (settings["pool"], settings["kv_type"]) == (8 * CONTEXT, "f16")
    assert "gpt-4o-mini (alias of edge-guide)" in edged("models", "--url", daemon).stdout
    listed = json.loads(edged("models", "--json", "--url", f"{daemon}/v1").stdout)
    assert listed["object"] == "list"


def test_ask_streams_an_answer(daemon: str) -> None:
    for arguments, stdin in (
        (["What is edged?"], None),
        (["edge-guide", "What is edged?"], None),
        (["gpt-4o-mini", "What", "is", "edged?"], None),
        ([], "What is edged?"),
        (["edge-guide"], "What is edged?"),
        (["--model", "edge-guide", "What is edged?"], None),
        (["-m", "gpt-4o-mini"], "What is edged?"),
    ):
        ran = edged("ask", *arguments, stdin=stdin, EDGED_URL=daemon)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.strip()


def test_ask_of_an_unknown_model_lists_what_exists(daemon: str) -> None:
    ran = edged("ask", "--model", "nope", "hi", EDGED_URL=daemon)
    assert ran.returncode == 1
    assert "edge-guide" in ran.stderr


def test_ask_without_a_question_or_with_too_long_a_one_is_exit_code_1(daemon: str) -> None:
    ran = edged("ask", stdin="", EDGED_URL=daemon)
    assert (ran.returncode, "nothing to ask" in ran.stderr) == (1, True)
    ran = edged("ask", stdin="word " * 3 * CONTEXT, EDGED_URL=daemon)
    assert (ran.returncode, str(CONTEXT) in ran.stderr) == (1, True)


def test_ctrl_c_ends_ask_cleanly_and_frees_the_model(daemon: str) -> None:
    def running() -> int:
        found = httpx.get(f"{daemon}/status", trust_env=False).json()
        return int(found["models"][0]["open"])

    # On a terminal, as a user has one.
    main, side = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "edged", "ask", "--url", daemon, "Tell me everything " * 50],
        stdin=side,
        stdout=side,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(side)
    assert eventually(lambda: running() > 0 or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    assert process.stderr
    _, errors = process.communicate(timeout=LIMIT_S)
    os.close(main)
    assert process.returncode in {0, 1}  # 0: the answer was there first
    assert "Traceback" not in errors
    assert eventually(lambda: running() == 0)
