"""LMDeploy's own pipeline as a peer: one JSON line of prompts in, one of figures out."""

import json
import sys
import time

from lmdeploy import GenerationConfig, TurbomindEngineConfig, pipeline


def main(folder: str, settings: dict[str, float]) -> None:
    """Serve rounds until the end of stdin."""
    out = sys.stdout
    sys.stdout = sys.stderr  # LMDeploy logs there
    config = TurbomindEngineConfig(
        session_len=int(settings["context"]),
        max_batch_size=int(settings["parallel"]),
        cache_max_entry_count=settings["share"],
        enable_prefix_caching=True,
    )
    pipe = pipeline(folder, backend_config=config)
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        wanted = json.loads(line)
        generation = GenerationConfig(
            max_new_tokens=wanted["tokens"], ignore_eos=True, do_sample=False
        )
        started = time.monotonic()
        first: dict[int, float] = {}
        n_tokens = 0
        for said in pipe.stream_infer(
            wanted["prompts"], gen_config=generation, do_preprocess=False
        ):
            first.setdefault(said.index, time.monotonic() - started)
            n_tokens += len(said.token_ids or ())
        seconds = time.monotonic() - started
        figures = {"first_s": list(first.values()), "tokens": n_tokens, "seconds": seconds}
        print(json.dumps(figures), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
