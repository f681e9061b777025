"""Runs pipeline_peer.py over a pipeline that computes nothing."""

import runpy
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import lmdeploy


def stream(prompts: list[str], gen_config: Any, **_: Any) -> Iterator[Any]:
    for index, _prompt in enumerate(prompts):
        for _n in range(gen_config.max_new_tokens):
            yield SimpleNamespace(index=index, token_ids=[1])
            time.sleep(0)


if __name__ == "__main__":
    lmdeploy.pipeline = lambda *_, **__: SimpleNamespace(stream_infer=stream)
    sys.argv.pop(0)
    runpy.run_path(sys.argv[0], run_name="__main__")
