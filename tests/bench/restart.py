"""The first request after a restart, with a prefix that the server had seen before it."""

from tests.bench.client import chat
from tests.bench.prompts import Prompts, system, user
from tests.bench.scenario import LLAMA_SERVER, Figures, Row, Scenario, Side, only_server

WORDS = 912  # and what stands around them: 1,000 tokens
TOKENS = 8
TARGET = 0.2


async def _restart(side: Side, prompts: Prompts) -> Figures:
    server = only_server(side)
    preamble = system(prompts.text("restart", WORDS))
    await chat(server.address, [preamble, user(prompts.text("before", 12))], TOKENS)
    ready_s = await server.restart()
    answer = await chat(server.address, [preamble, user(prompts.text("after", 12))], TOKENS)
    found = {"ttft": answer.ttft_s, "ready": ready_s}
    if answer.n_prompt:
        found |= {"prompt": answer.n_prompt, "cached": answer.n_cached / answer.n_prompt * 100}
    return found


RESTART = Scenario(
    "restart",
    f"one request with a system prompt of {WORDS} words; SIGTERM; the server starts again, with "
    "what it has kept by itself; the first request has the same system prompt and another question",
    (
        Row("ttft", "time to first token", "s", False, {LLAMA_SERVER: TARGET}),
        Row("cached", "prompt tokens not computed", "%", True),
        Row("prompt", "prompt tokens", "tokens", True),
        Row("ready", "from start to ready", "s", False),
    ),
    (_restart,),
)
