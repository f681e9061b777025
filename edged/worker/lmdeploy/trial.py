"""A program: does this box generate a token? `python -m edged.worker.lmdeploy.trial GPU`.

It makes a tiny model of random weights (Qwen2's shape), loads it on a GPU (a number as NVML counts)
as a worker would, and prints a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from edged.protocol import Delta, Failed, Generate, Launch, LmdeployLaunch, Sampling, Text
from edged.worker.lmdeploy import random_model
from edged.worker.lmdeploy.engine import LmdeployEngine

_SPARE = 1 << 30  # CUDA's context and what else a tiny model takes


async def _generate(folder: Path, gpu: int) -> dict[str, object]:
    settings = LmdeployLaunch(sys.executable, (gpu,), _SPARE, 64 << 20)
    launch = Launch("trial", "lmdeploy", str(folder), "1", 256, 2, 512, lmdeploy=settings)
    engine = LmdeployEngine()
    started = time.monotonic()
    ready = await engine.load(launch, lambda _: None)
    loaded = time.monotonic()
    sampling = Sampling(temperature=0.0, ignore_eos=True)
    request = Generate(Text("hello"), sampling=sampling, max_tokens=1, id=1)
    events = [event async for event in engine.generate(request)]
    failed = next((event for event in events if isinstance(event, Failed)), None)
    if failed is not None:
        raise RuntimeError(failed.message)
    text = "".join(event.content for event in events if isinstance(event, Delta))
    return {
        "build": ready.build,
        "load_s": round(loaded - started, 2),
        "token_s": round(time.monotonic() - loaded, 2),
        "text": text,
    }


def main() -> int:
    """Run the trial; return the exit code, 0 if a token came."""
    with tempfile.TemporaryDirectory() as made:
        folder = random_model.write(Path(made) / "m")
        try:
            told = asyncio.run(_generate(folder, int(sys.argv[1])))
            sys.stdout.write(json.dumps(told) + "\n")
        except Exception as error:  # noqa: BLE001 - whatever it is, that is the answer
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # native threads must not hold the process
