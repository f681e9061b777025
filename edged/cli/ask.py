"""`edged ask`: one question to a model, its answer streamed into the terminal."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console

from edged.cli.client import Url, connected, fail, fetch, message_of

_CONTROLS = dict.fromkeys({*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")})
_LIMIT_S = 3600.0  # the daemon pings every few seconds; this only bounds a dead network


def ask(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] TEXT",
            help="The question; without it, standard input.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="The model, in place of a first word."),
    ] = None,
    url: Url = None,
) -> None:
    """Ask a model; the first one of models.toml that chats unless MODEL is given."""
    with connected(url, limit_s=_LIMIT_S) as client:
        names = {
            model["id"]: "chat" in model["edged"]["capabilities"]
            for model in fetch(client, "/v1/models")["data"]
        }
        if not any(names.values()):
            fail("no model that chats; add a [models.NAME] table to models.toml")
        name, text = _split(words or [], names) if model is None else (model, _text(words or []))
        if not text.strip():
            fail('nothing to ask; `edged ask "How do I add a model?"`')
        try:
            _stream(client, name, text)
        except KeyboardInterrupt:  # the connection closes, and so the daemon aborts
            print()
            raise typer.Exit(1) from None


def _split(words: list[str], names: dict[str, bool]) -> tuple[str, str]:
    """Return model and text: a first word that names a model is one if a text follows.

    `names`: every model, and whether it chats.
    """
    if words and words[0] in names and (len(words) > 1 or not sys.stdin.isatty()):
        return words[0], _text(words[1:])
    return next(name for name, chats in names.items() if chats), _text(words)


def _text(words: list[str]) -> str:
    return " ".join(words) if words or sys.stdin.isatty() else sys.stdin.read()


def _stream(client: httpx.Client, model: str, text: str) -> None:
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": text}]}
    waiting = Console(stderr=True).status(f"waiting for {model}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(waiting)
        response = stack.enter_context(client.stream("POST", "/v1/chat/completions", json=body))
        if response.status_code != httpx.codes.OK:
            response.read()
            waiting.stop()
            fail(message_of(response))
        thinking = False
        for delta in _deltas(response, waiting.stop):
            if reasoning := delta.get("reasoning_content"):
                waiting.stop()
                thinking = True
                print(_dim(_plain(reasoning)), end="", flush=True)
            if content := delta.get("content"):
                waiting.stop()
                print(("\n\n" if thinking else "") + _plain(content), end="", flush=True)
                thinking = False
    print()


def _deltas(response: httpx.Response, stop_waiting: Any) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        data = line.removeprefix("data: ")
        if data in (line, "[DONE]"):  # a comment, an empty line, the end
            continue
        event = json.loads(data)
        if "error" in event:
            stop_waiting()
            print()
            fail(event["error"]["message"])
        for choice in event["choices"]:
            yield choice["delta"]


def _plain(text: str) -> str:
    """Return `text` without control characters: a model does not steer the terminal."""
    return text.translate(_CONTROLS) if sys.stdout.isatty() else text


def _dim(text: str) -> str:
    return f"\x1b[2m{text}\x1b[0m" if sys.stdout.isatty() else text
