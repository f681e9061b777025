"""edge-guide on a GPU: TurboMind on the folder answers as transformers and llama.cpp do.

That transformers on the folder and llama.cpp on the GGUF choose alike is shown without a GPU, in
tests/lmdeploy/test_edge_guide.py; llama.cpp is not installed here.
"""

from pathlib import Path

from edged.hardware import Hardware
from edged.protocol import Delta, Generate, Messages, Sampling
from tests.gpu.support import ask, launches, running
from tests.lmdeploy import guide

TIE = 0.4  # logits; TurboMind computes in float16


async def test_greedy_answers_are_those_of_the_gguf(box: Hardware, tmp_path: Path) -> None:
    python = str(box.engines.lmdeploy_python)
    folder = guide.write(tmp_path / "edge-guide", python)
    answers = []
    async with running(launches(tmp_path, box, "edge-guide", context=1024)[0]) as worker:
        for messages in guide.CONVERSATIONS:
            request = Generate(
                Messages(messages), sampling=Sampling(temperature=0.0), max_tokens=100, logprobs=0
            )
            events = await ask(worker, request)
            rows = [one for e in events if isinstance(e, Delta) for one in e.logprobs]
            answers.append([one.token for one in rows])
    found = guide.transformers(python, folder, answers)
    n_tokens, n_ties = guide.compare(answers, found, TIE)
    print(f"{n_tokens} tokens, {n_ties} near-ties that were chosen otherwise")
    assert n_tokens > 200
    assert n_ties <= n_tokens // 20
