"""edge-guide as a folder of safetensors, made from the GGUF that ships, and what transformers says.

The comparison of engines, on CPU and in tests/gpu, is on this folder.
"""

import importlib.util
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import edged.store

GUIDE = Path(edged.store.__file__).parent / "builtin" / "edge-guide.gguf"
_ROOT = Path(__file__).parents[2]
_CONVERT = _ROOT / "packaging/edge-guide/to_safetensors.py"
_LIMIT_S = 300
QUESTIONS = [
    "What is edged?",
    "How do I add a model?",
    "Where are the logs?",
    "Why is my model on the CPU?",
    "What happens when a worker crashes?",
    "edged 是什么",
    "如何添加模型",
    "日志在哪里",
    "What is the capital of France?",
    "Grüße aus Köln 🦙",
]
CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": each}] for each in QUESTIONS
] + [
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How do I get an API key?"},
        {"role": "assistant", "content": "edged key add NAME"},
        {"role": "user", "content": "And how do I remove it?"},
    ]
]


def write(folder: Path, python: str | Path) -> Path:
    """Write the folder and return it; `python` is an interpreter that has LMDeploy."""
    found = importlib.util.find_spec("gguf")
    assert found is not None
    assert found.submodule_search_locations is not None
    folder.mkdir(parents=True)
    # `gguf` is plain Python; of our own environment the other interpreter sees nothing else
    beside = folder.with_name(f"{folder.name}-gguf")
    beside.mkdir()
    (beside / "gguf").symlink_to(found.submodule_search_locations[0])
    subprocess.run(
        [str(python), str(_CONVERT), str(GUIDE), str(folder)],
        check=True,
        timeout=_LIMIT_S,
        env=os.environ | {"PYTHONPATH": str(beside)},
    )
    return folder


def transformers(
    python: str | Path, folder: Path, answers: list[list[int]]
) -> list[dict[str, Any]]:
    """Ask transformers about answers to CONVERSATIONS; see `transformers_peer.py`."""
    asked = {"folder": str(folder), "conversations": CONVERSATIONS, "answers": answers}
    done = subprocess.run(
        [str(python), "-m", "tests.lmdeploy.transformers_peer"],
        check=False,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        cwd=_ROOT,
        env=os.environ | {"PYTHONPATH": str(_ROOT), "HF_HUB_OFFLINE": "1"},
    )
    assert not done.returncode, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def compare(answers: list[list[int]], found: list[dict[str, Any]], tie: float) -> tuple[int, int]:
    """Return the number of tokens and of those that transformers chooses otherwise.

    Asserts that only a lead below `tie`, in logits, parts them.
    """
    n_tokens, n_ties = 0, 0
    for messages, answer, each in zip(CONVERSATIONS, answers, found, strict=True):
        choices = zip(answer, each["chosen"], each["leads"], strict=True)
        for place, (ours, theirs, lead) in enumerate(choices):
            n_tokens += 1
            n_ties += ours != theirs
            assert ours == theirs or lead < tie, (messages, place, ours, theirs, lead)
    return n_tokens, n_ties
