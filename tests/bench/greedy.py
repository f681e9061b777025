"""Greedy answers of edge-guide beside llama-server's: the same tokens, or a tie parted them."""

import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from rich.progress import Progress

from tests.bench.client import Address, post
from tests.bench.conversations import CONVERSATIONS, Conversation
from tests.bench.others import watched
from tests.bench.report import Result, Section
from tests.bench.scenario import EDGED, LLAMA_SERVER, Row
from tests.bench.servers import ROOT, Settings, edged, llama_server, running

# Which part of an answer is a thought is each server's reading; the tokens of those that think are
# compared by tests/llamacpp/test_greedy_peer.py.
ASKED = [each for each in CONVERSATIONS if not each.thinking]
GUIDE = ROOT / "edged/store/builtin/edge-guide.gguf"
CONTEXT = 2048
TOKENS = 200
# In logits. Prefixes from a cache, other borders between batches and other company in a batch
# change logits by rounding; where the two likeliest are closer than this, either one is right.
NEAR_TIE = 0.05


class Alternative(msgspec.Struct):
    """A token by its bytes, and the logarithm of its probability."""

    bytes: list[int]
    logprob: float


class Token(Alternative):
    """A chosen token, and the likeliest at its place."""

    top_logprobs: list[Alternative] = []

    @property
    def lead(self) -> float:
        """Distance of the two likeliest, which is that of their logits."""
        first, second, *_ = sorted((one.logprob for one in self.top_logprobs), reverse=True)
        return first - second


class _Logprobs(msgspec.Struct):
    content: list[Token] | None = None


class _Function(msgspec.Struct):
    name: str
    arguments: str


class _Call(msgspec.Struct):
    function: _Function


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str
    logprobs: _Logprobs | None = None


class _Reply(msgspec.Struct):
    choices: list[_Choice]


@dataclasses.dataclass(frozen=True)
class Said:
    """One answer as a client sees it; ``tokens``: those of its content, where it is all there is"""

    content: str
    reasoning: str
    calls: tuple[tuple[str, str], ...]
    reason: str
    tokens: tuple[Token, ...] = ()

    @property
    def visible(self) -> tuple[Any, ...]:
        """What must be the same."""
        return self.content, self.reasoning, self.calls, self.reason


def verdict(mine: Said, theirs: Said) -> str:
    """Return "equal", "tie" (they part where the two likeliest are close) or "parted"."""
    pairs = itertools.zip_longest(mine.tokens, theirs.tokens)
    for my, their in pairs if mine.tokens and theirs.tokens else ():
        if my is None or their is None:
            return "parted"
        if my.bytes != their.bytes:
            return "tie" if min(my.lead, their.lead) < NEAR_TIE else "parted"
    return "equal" if mine.visible == theirs.visible else "parted"


async def ask(address: Address, conversation: Conversation) -> Said:
    """Ask for one greedy answer."""
    body: dict[str, Any] = {
        "model": address.model,
        "messages": conversation.messages,
        "max_tokens": TOKENS,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    if conversation.tools:
        body["tools"] = conversation.tools
    reply = msgspec.json.decode(await post(address, "/v1/chat/completions", body), type=_Reply)
    (choice,) = reply.choices
    said, logprobs = choice.message, choice.logprobs
    calls = tuple((each.function.name, each.function.arguments) for each in said.tool_calls or ())
    plain = not said.reasoning_content and not calls
    tokens = tuple(logprobs.content or ()) if plain and logprobs else ()
    return Said(
        said.content or "",
        said.reasoning_content or "",
        calls,
        choice.finish_reason,
        tuple(token for token in tokens if token.bytes),  # an end may stand as a token of no text
    )


async def section(settings: Settings, folder: Path, progress: Progress) -> Section:
    """Ask both sides everything, one after the other."""
    settings = dataclasses.replace(settings, model=GUIDE, context=CONTEXT)
    verdicts: list[str] = []
    notes: list[str] = []
    task = progress.add_task("greedy", total=len(ASKED))
    with watched() as meanwhile:
        async with (
            running(edged(settings, folder / "greedy-edged")) as one,
            running(llama_server(settings, folder / "greedy-llama-server")) as other,
        ):
            for conversation in ASKED:
                mine = await ask(one.address, conversation)
                theirs = await ask(other.address, conversation)
                verdicts.append(verdict(mine, theirs))
                if verdicts[-1] != "equal":
                    last = str(conversation.messages[-1]["content"])
                    notes.append(
                        f"{verdicts[-1]} after {last[:60]!r}: edged {mine.visible}, "
                        f"llama-server {theirs.visible}"
                    )
                progress.advance(task)
    counts = Counter(verdicts)
    n_right = counts["equal"] + counts["tie"]
    rows = (
        (Row("equal", "equal to the last token", "%", True), counts["equal"]),
        (Row("right", f"equal, or parted at a tie < {NEAR_TIE}", "%", True, limit=100.0), n_right),
    )
    return Section(
        "greedy",
        f"edge-guide's greedy answers beside {LLAMA_SERVER}'s: {len(verdicts)} conversations, one "
        "after the other, in English and Chinese, with several turns and tools; content, calls, "
        "reason of the end, and every token of the content; a tie: the two likeliest tokens' "
        f"logits less than {NEAR_TIE} apart",
        tuple(Result(row, {EDGED: (n / len(verdicts) * 100,)}) for row, n in rows),
        {"both": [meanwhile]},
        tuple(notes),
    )
