"""A worker of a played box: the played native part of tests/lmdeploy under the real adapter."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from edged.protocol import Launch, LmdeployLaunch
from edged.worker import __main__ as worker
from edged.worker.lmdeploy import library
from edged.worker.lmdeploy.engine import LmdeployEngine
from edged.worker.lmdeploy.vocabulary import Vocab
from tests.lmdeploy.contract.played import Native, PlayedLibrary

_GREEDY_MODEL = "edge-guide"  # the one that is really computed, by transformers


class Talker(Native):
    """Says as much as is asked for, letters that depend on the prompt; or JSON."""

    def __init__(self, launch: Launch) -> None:
        super().__init__()
        self._vocab = Vocab(Path(launch.path), frozenset())
        self._model: Any = None
        if Path(launch.path).name == _GREEDY_MODEL:
            self._model = AutoModelForCausalLM.from_pretrained(launch.path)
            self._continued([1], 1)  # what is loaded only then

    def answer_to(self, prompt: list[int], config: Any) -> list[int]:
        seen = prompt in self.prompts[:-1]
        self.cached = len(prompt) - 1 if seen else 0
        if self._model is not None:
            return self._continued(prompt, config.max_new_tokens)
        if config.response_format is not None:
            return self._vocab.tokenize([('{"a": 1, "b": "x"}<|im_end|>', True)], wrap=False)
        letters = self._vocab.tokenize([("abcdefghijklmnopqrstuvwxyz", False)], wrap=False)
        return [letters[(sum(prompt) + n * n) % len(letters)] for n in range(config.max_new_tokens)]

    def _continued(self, prompt: list[int], most: int) -> list[int]:
        assert self._model is not None
        made = self._model.generate(torch.tensor([prompt]), max_new_tokens=most, do_sample=False)
        return list(made[0, len(prompt) :].tolist())

    def likelihoods_of(self, answer: list[int]) -> list[dict[int, float]]:
        return [{token: -0.25, (token + 1) % 300: -2.0} for token in answer]


class Played(PlayedLibrary):
    def _open(self, launch: Launch, settings: LmdeployLaunch) -> Any:
        self._share(settings)
        taken = Path(os.environ["EDGED_PLAYED_GPU"]) / str(os.getpid())
        taken.write_text(str(settings.weights_bytes + settings.cache_bytes))
        return super()._open(launch, settings)

    @staticmethod
    def _free(device: int) -> int:
        assert device == 0
        return 140 << 30


if __name__ == "__main__":
    library._ROOM_WAIT_S = 1.0
    worker.make_engine = lambda _: LmdeployEngine(
        open_library=lambda launch: Played(launch, Talker(launch))
    )
    worker.main()
