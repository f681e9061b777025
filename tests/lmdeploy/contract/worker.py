"""The worker as it is, in LMDeploy's environment, with TurboMind's native part played.

`python -m tests.lmdeploy.contract.worker FD` serves; with a folder instead it writes the model.
"""

import sys
from pathlib import Path

from edged.protocol import Launch
from edged.worker import __main__ as worker
from edged.worker.lmdeploy.engine import LmdeployEngine
from edged.worker.lmdeploy.vocabulary import Vocab
from tests.lmdeploy.contract import tiny_model
from tests.lmdeploy.contract.played import Native, PlayedLibrary

SAID = "Grüße from a played engine"


def _open(launch: Launch) -> PlayedLibrary:
    native = Native()
    text = [(f"{SAID}<|im_end|>", True)]
    native.answer = Vocab(Path(launch.path), frozenset()).tokenize(text, wrap=False)
    return PlayedLibrary(launch, native)


if __name__ == "__main__":
    if sys.argv[1].isdigit():
        worker.make_engine = lambda _: LmdeployEngine(open_library=_open)
        worker.main()
    tiny_model.write(Path(sys.argv[1]))
