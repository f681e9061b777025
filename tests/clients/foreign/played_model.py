"""A model that understands what LangChain's suite asks, played by a worker of the real protocol.

Random weights cannot know that the argument of "magic_function(3)" is 3. This worker reads it out
of the question; everything around it is the real daemon: `python -m
tests.clients.foreign.played_model CONFIG` serves it. What engines do with tools and schemas is
shown with real ones, beside.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import sys
from typing import Any

from edged import daemon, log
from edged.protocol import (
    CallDelta,
    Delta,
    Finish,
    Generate,
    JsonSchema,
    Messages,
    Started,
    Usage,
)
from tests.daemon import fake_worker

_PIECE = 4  # characters of a token, so to speak
_LEAST = {"integer": 1, "number": 1.5, "boolean": True, "array": [], "null": None}


class PlayedModel(fake_worker.FakeWorker):
    async def run(self, request: Generate) -> None:
        assert isinstance(request.prompt, Messages)
        read = sum(len(str(message)) for message in request.prompt.messages) // _PIECE
        self.event(Started(request.id, prompt_tokens=read))
        said = self.deltas(request, request.prompt)
        for delta in said:
            self.event(delta)
            await asyncio.sleep(0)
        reason = "tool_calls" if any(delta.calls for delta in said) else "stop"
        self.event(Finish(request.id, reason, Usage(read, len(said))))

    def deltas(self, request: Generate, prompt: Messages) -> list[Delta]:
        choice, last = request.tool_choice, prompt.messages[-1]
        tools = [tool["function"] for tool in prompt.tools or ()]
        tools = [tool for tool in tools if not choice.names or tool["name"] in choice.names]
        asked = next(m["content"] for m in reversed(prompt.messages) if m["role"] == "user")
        may = last["role"] == "user" and choice.mode != "none"
        if tools and (may or choice.mode == "required"):
            arguments = json.dumps(
                filled(tools[0].get("parameters", {}), asked), ensure_ascii=False
            )
            first = CallDelta(0, f"call_{request.id}", tools[0]["name"])
            pieces = [CallDelta(0, arguments=piece) for piece in cut(arguments)]
            return [Delta(request.id, calls=[call]) for call in (first, *pieces)]
        if isinstance(request.constraint, JsonSchema):
            text = json.dumps(filled(request.constraint.schema, asked))
        else:
            text = "It is sunny, and the cat sat on the mat."
        return [Delta(request.id, content=piece) for piece in cut(text)]


def cut(text: str) -> list[str]:
    return [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)]


def filled(schema: dict[str, Any], asked: str) -> Any:
    """Return a value of `schema` with what the question names: numbers, and words in quotes."""
    kind = schema.get("type", "object" if "properties" in schema else "string")
    for either in schema.get("anyOf", ()):
        return filled(either, asked)
    if kind == "object":
        # JSON mode has no schema: the question names the keys in quotes.
        words = re.findall(r"'(\w+)'", asked)
        wanted = schema.get("properties") or {word: {"type": "string"} for word in words}
        return {name: filled(each, asked) for name, each in wanted.items()}
    if kind == "integer" and (number := re.search(r"-?\d+", asked)):
        return int(number[0])
    if kind == "string":
        quoted = re.search(r"'([^']+)'", asked)
        return quoted[1] if quoted else "like that"
    return _LEAST[kind]


def main() -> int:
    if sys.argv[1].isdigit():  # the worker: its socket
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        fake_worker.FakeWorker = PlayedModel  # type: ignore[misc]
        asyncio.run(fake_worker.serve(socket.socket(fileno=int(sys.argv[1]))))
        return 0
    log.configure()
    return daemon.run(
        sys.argv[1], worker_argv=(sys.executable, "-m", "tests.clients.foreign.played_model")
    )


if __name__ == "__main__":
    sys.exit(main())
