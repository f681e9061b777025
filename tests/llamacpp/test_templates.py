"""edged's prompts are llama-server's, letter by letter, over the templates of llama.cpp's source.

Every template that llama.cpp ships renders every conversation below twice: here, and by the
`/apply-template` of a llama-server that was compiled from the same source. Differences that are
meant are in `template_conversations.py` with their reason; one that is gone must leave the list.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from socket import socket
from typing import Any

import pytest

from edged.errors import InvalidRequest
from edged.protocol import Messages
from edged.worker.template import Template
from tests.llamacpp.support import EDGE_GUIDE
from tests.llamacpp.template_conversations import CONVERSATIONS, DIFFERENCES, Conversation
from tests.models.cache import UnavailableError, cache_dir
from tests.models.source import llama_cpp_version

START_LIMIT_S = 60.0


def _places() -> tuple[Path, Path]:
    """Return llama-server and the folder of templates; raises UnavailableError."""
    version = llama_cpp_version()
    folder = cache_dir() / f"llama_cpp_python-{version}/vendor/llama.cpp/models/templates"
    if not folder.is_dir():
        raise UnavailableError("llama.cpp's source is not in the cache; `make test` fetches it")
    built = sorted(cache_dir().glob(f"llama-server-{version}-*/llama-server"))
    if not built:
        raise UnavailableError("llama-server is not compiled here; `make bench` does that once")
    return built[-1], folder


try:
    LLAMA_SERVER, FOLDER = _places()
except UnavailableError as missing:
    pytest.skip(str(missing), allow_module_level=True)

TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja"))


def _variables(conversation: Conversation) -> dict[str, Any]:
    # llama-server hands today's date to Llama 3.1's template, which has its own; and always says
    # whether to think, where transformers and edged leave the choice to the template.
    return {"date_string": "26 Jul 2024", "enable_thinking": True} | conversation.settings


def _edged(template: Template, conversation: Conversation, source: str) -> str:
    settings = _variables(conversation)
    if "enable_thinking" not in source and not conversation.settings:
        del settings["enable_thinking"]
    return template.render(
        Messages(
            conversation.messages,
            tools=conversation.tools or None,
            template_kwargs=settings,
            continue_last=conversation.continued,
        )
    )


def _words(conversation: Conversation) -> list[str]:
    """Return what a prompt of the conversation must show."""
    words = [tool["function"]["name"] for tool in conversation.tools]
    for message in conversation.messages:
        words += ["Zürich"] if "tool_calls" in message else []
        content = message["content"] or ""
        texts = [content] if isinstance(content, str) else [part["text"] for part in content]
        words += texts if message["role"] != "tool" else ["7" if "7" in content else content]
    return words


def _body(conversation: Conversation) -> dict[str, Any]:
    body: dict[str, Any] = {
        "messages": conversation.messages,
        "chat_template_kwargs": _variables(conversation),
    }
    if conversation.tools:
        body["tools"] = conversation.tools
    if conversation.continued:
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return body


def _ask(port: int, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data)
    try:
        with urllib.request.urlopen(request, timeout=START_LIMIT_S) as answer:  # noqa: S310
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        return {"refused": str(json.load(error)["error"]["message"])}


@contextlib.contextmanager
def _llama_server(template: Path, log: Path) -> Iterator[int]:
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [LLAMA_SERVER, "--model", EDGE_GUIDE, "--chat-template-file", template, "--jinja"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--no-ui", "--no-warmup"]
    command += ["--ctx-size", "64", "--parallel", "1", "--threads", "1", "--fit", "off"]
    command += ["--no-reasoning-preserve"]  # it shows past thoughts, whatever the template's taste
    with log.open("w") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while True:
            with contextlib.suppress(OSError):
                if "refused" not in _ask(port, "/health"):
                    break
            assert process.poll() is None, f"llama-server ended: {log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"llama-server starts too slowly: {log}"
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def _theirs(name: str, folder: Path) -> dict[str, dict[str, Any]]:
    with _llama_server(FOLDER / f"{name}.jinja", folder / f"{name}.log") as port:
        answers = {"props": _ask(port, "/props")}
        for conversation, said in CONVERSATIONS.items():
            answers[conversation] = _ask(port, "/apply-template", _body(said))
    return answers


@pytest.fixture(scope="module")
def theirs(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Future[dict[str, dict[str, Any]]]]]:
    """llama-server's prompts of every template; two servers start and answer at a time."""
    folder = tmp_path_factory.mktemp("llama-server")
    with ThreadPoolExecutor(2) as pool:
        futures = {name: pool.submit(_theirs, name, folder) for name in TEMPLATES}
        yield futures
        for future in futures.values():
            future.cancel()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompt_equals_that_of_llama_server(
    name: str, theirs: dict[str, Future[dict[str, dict[str, Any]]]]
) -> None:
    source = (FOLDER / f"{name}.jinja").read_text()
    answers = theirs[name].result()
    bos, eos = (answers["props"][key] for key in ("bos_token", "eos_token"))
    template = Template(source, bos=bos, eos=eos)
    different, gone = {}, []
    for conversation, said in CONVERSATIONS.items():
        expected = answers[conversation].get("prompt")
        try:
            prompt = _edged(template, said, source)
        except InvalidRequest as error:
            prompt = f"refused: {error}"
        # llama-server takes off the BOS that the tokenizer will add again.
        equal = expected is not None and prompt.removeprefix(bos) == expected.removeprefix(bos)
        listed = (name, conversation) in DIFFERENCES
        if not equal and not listed:
            different[conversation] = (prompt, expected or answers[conversation])
        elif equal and listed:
            gone.append(conversation)
        if listed:  # then edged is the one that says everything
            missing = [words for words in _words(said) if words not in prompt]
            assert not missing, (conversation, prompt)
            assert not said.continued or prompt.endswith(_words(said)[-1])
    assert not different
    assert not gone, "these are equal now: take them out of `template_conversations.py`"


def test_list_of_differences_names_what_exists() -> None:
    assert {template for template, _ in DIFFERENCES} <= set(TEMPLATES)
    assert {conversation for _, conversation in DIFFERENCES} <= set(CONVERSATIONS)
