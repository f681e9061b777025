"""Greedy answers of edge-guide: llama-server's own tokens, where that is built."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from msgspec.structs import replace

from edged.protocol import Messages
from tests.bench.conversations import CONVERSATIONS, Conversation
from tests.llamacpp.peer import llama_server
from tests.llamacpp.support import EDGE_GUIDE, Choices, choices, launch, needs_llama_cpp, running

pytestmark = needs_llama_cpp

CONTEXT = 2048
BATCH = 512
TOKENS = 200
SETTINGS = f"-c {CONTEXT} -b {BATCH} -ub {BATCH} -ctk f16 -ctv f16".split()


@pytest.fixture(scope="module")
def peer() -> Iterator[httpx.Client]:
    with llama_server(EDGE_GUIDE, *SETTINGS) as client:
        yield client


def _theirs(peer: httpx.Client, conversation: Conversation, **more: Any) -> Choices:
    """Return the tokens that it chose, each with its lead over the second likeliest."""
    body = {
        "messages": conversation.messages,
        "max_tokens": TOKENS,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
        "chat_template_kwargs": {"enable_thinking": conversation.thinking},
    }
    if conversation.tools:
        body["tools"] = list(conversation.tools)
    reply = peer.post("/v1/chat/completions", json=body | more).raise_for_status().json()
    found = Choices()
    for token in reply["choices"][0]["logprobs"]["content"]:
        first, second = sorted((one["logprob"] for one in token["top_logprobs"]), reverse=True)
        found.append((token["id"], first - second))
    return found


async def test_tokens_are_llama_servers(peer: httpx.Client) -> None:
    """Neither side takes a prefix from an earlier one, so that both compute the same batches."""
    n_equal = n_tokens = 0
    launched = launch(context=CONTEXT, parallel=1, batch=BATCH)
    assert launched.llamacpp is not None
    # Guesses make batches of another shape, which Q8_0 rounds by up to 0.4 of a logit.
    plain = replace(launched, llamacpp=replace(launched.llamacpp, speculation=False))
    async with running(plain) as engine:
        for i, conversation in enumerate(CONVERSATIONS):
            prompt = Messages(
                conversation.messages,
                list(conversation.tools) or None,
                template_kwargs={"enable_thinking": conversation.thinking},
            )
            (mine,) = await choices(
                engine, [prompt], together=False, max_tokens=TOKENS, group=str(i)
            )
            theirs = _theirs(peer, conversation, cache_prompt=False)
            if conversation.tools:  # calls follow each side's own grammar, which may differ
                n_equal += [t for t, _ in mine] == [t for t, _ in theirs]
            else:
                n_equal += mine.same_as(theirs)
            n_tokens += len(theirs)
    assert n_tokens > 20 * len(CONVERSATIONS)
    assert n_equal >= math.ceil(0.9 * len(CONVERSATIONS)), "ties are rare in a trained model"
