"""edge-guide in both formats: LMDeploy's folder and llama.cpp's file are one model.

TurboMind needs a GPU (tests/gpu compares it there on the same folder); here transformers computes
what the folder says, and the plan has to let the folder through.
"""

from pathlib import Path

import pytest

from edged.config import Config, Model, Source
from edged.hardware import Cpu, Engines, Gpu, Hardware, Memory
from edged.plan import make, turbomind
from edged.protocol import Messages
from edged.store.safetensors import read_folder
from tests.llamacpp.support import NEAR_TIE, choices, launch, needs_llama_cpp, request, running
from tests.lmdeploy import environment, guide
from tests.models import float_guide
from tests.models.cache import UnavailableError

TIE = 0.05  # logits; the folder's float16 rounds the file's weights by as much


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        python = environment.python()
    except UnavailableError as error:
        pytest.skip(str(error))
    return guide.write(tmp_path_factory.mktemp("guide") / "edge-guide", python)


@needs_llama_cpp
@pytest.mark.timeout(400)
@pytest.mark.parametrize("form", ["float32", "as it ships"])
async def test_greedy_answers_are_the_same_token_by_token(folder: Path, form: str) -> None:
    path, tie = (float_guide(), TIE) if form == "float32" else (guide.GUIDE, NEAR_TIE)
    async with running(launch(path, context=1024)) as engine:
        prompts = [Messages(turns) for turns in guide.CONVERSATIONS]
        chosen = await choices(engine, prompts, together=False, max_tokens=100)
        read = [list(engine._preparer.prepare(request(each)).sequence.tokens) for each in prompts]
    answers = [[token for token, _ in one] for one in chosen]
    found = guide.transformers(environment.python(), folder, answers)
    assert [each["prompt"] for each in found] == read
    n_tokens, n_ties = guide.compare(answers, found, tie)
    print(f"{n_tokens} tokens, {n_ties} near-ties that were chosen otherwise")
    assert n_tokens > 200
    assert n_ties <= n_tokens // 50


def test_plan_lets_this_very_folder_through(folder: Path) -> None:
    weights = read_folder(folder)
    assert weights.chat_template
    for capability in ((7, 0), (8, 9), (9, 0)):
        turbomind.check(weights.config, capability=capability, kv_bits=0)
    gpu = Gpu(0, "RTX 3060", 12 << 30, 11 << 30, (8, 6), "550.127.05")
    box = Hardware(
        cpu=Cpu("a CPU", "x86_64", 4, 4, 8),
        memory=Memory(32 << 30, 32 << 30, 32 << 30),
        gpus=(gpu,),
        engines=Engines(llamacpp=None, lmdeploy="0.18.0", lmdeploy_python="/p"),
    )
    model = Model(name="edge-guide", safetensors=Source("file", str(folder)), context=1024)
    config = Config(path=str(folder.parent / "models.toml"), models={"edge-guide": model})
    planned = make(config, box).models["edge-guide"]
    assert planned.launch is not None, planned.refusal
    assert planned.launch.engine == "lmdeploy"
    assert planned.launch.path == str(folder)
