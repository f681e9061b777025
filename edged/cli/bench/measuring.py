"""Measures one model in rounds.

In each of them every figure is taken once, so that a box which is slower for a while shows as a
spread of all figures, and not as one of them that is wrong.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from msgspec import Struct, structs

from edged.cli.bench import sizes, texts
from edged.cli.bench.answer import Answer, decode_rate
from edged.cli.bench.daemon import BenchError, Daemon
from edged.cli.bench.figures import Decode, Figure, Inputs, Others, Prompt, inputs_rate
from edged.cli.bench.wording import duration, number, plural
from edged.status import ModelStatus

_LOAD_LIMIT_S = 900.0
_TRIES = 5  # until the daemon has noticed that our own requests ended
_TRY_AGAIN_S = 0.05
_QUERY = 8  # words
_INPUT = 32  # words
_ALONE = 5  # requests with one input

# Answers of full length that do not repeat themselves. Beyond its natural end a model does, and
# what repeats itself is guessed ahead: speculation then shows a multiple of the speed that any
# real answer has.
_DICE = {"ignore_eos": True, "temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}

_Tell = Callable[[str], None]
_Got = TypeVar("_Got")
_Sent = tuple[float, int]  # s of a request, its tokens


class Found(Struct, frozen=True):
    """The figures of one model; what the time was too short for is missing."""

    prompt: Prompt | None = None
    decode: tuple[Decode, ...] = ()
    alone_s: Figure | None = None
    inputs: tuple[Inputs, ...] = ()
    others: Others = Others(0, 0)
    seconds: float = 0.0
    missing: tuple[str, ...] = ()


class Measuring:
    """One model, with so many `clients` at once; `tell` gets a line after each measurement."""

    def __init__(
        self,
        daemon: Daemon,
        model: ModelStatus,
        clients: Sequence[int],
        seconds: float,
        tell: _Tell,
    ) -> None:
        self._daemon = daemon
        self._model = model
        self._clients = clients
        self._seconds = seconds
        self._tell = tell
        self._end_s = 0.0
        self._open = 0  # requests of others seen between two measurements, at most
        self._names: dict[str, bool] = {}  # of the measurements; whether there was time for it

    async def run(self) -> Found:
        """Measure, for at most twice the seconds. Loads the model before. Raises BenchError."""
        before = await self._daemon.n_others()
        self._open = await self._others_open()
        await self._load()
        began_s = time.monotonic()
        self._end_s = began_s + self._seconds
        found = await (self._chat() if self._model.kind == "chat" else self._vectors())
        seconds = round(time.monotonic() - began_s, 3)
        self._open = max(self._open, await self._others_open())
        answered = await self._daemon.n_others() - before
        return structs.replace(
            found,
            others=Others(self._open, max(0, answered)),
            seconds=seconds,
            missing=tuple(name for name, had_time in self._names.items() if not had_time),
        )

    async def _load(self) -> None:
        """Have the model loaded, and every page of it touched."""
        try:
            async with asyncio.timeout(_LOAD_LIMIT_S):
                if self._model.kind == "chat":
                    await self._completion(texts.unique(2), 1)
                else:
                    await self._send(1, 2)
        except TimeoutError:
            raise BenchError(f"the model is not loaded after {_LOAD_LIMIT_S:.0f} s") from None

    async def _step(
        self,
        name: str,
        measurement: Coroutine[Any, Any, _Got],
        told: Callable[[_Got], str],
    ) -> _Got | None:
        """Return what was measured; None where the time is up, before or meanwhile."""
        left_s = self._end_s - time.monotonic()
        self._names.setdefault(name, False)
        if left_s <= 0:
            measurement.close()
            self._tell("")
            return None
        self._open = max(self._open, await self._others_open())
        try:
            async with asyncio.timeout(left_s + self._seconds):
                got = await measurement
        except TimeoutError:
            self._tell("")
            return None
        self._names[name] = True
        self._tell(f"{name}: {told(got)}")
        return got

    async def _others_open(self) -> int:
        """Return how many requests of others run or wait; none of ours is under way."""
        n_open = 0
        for _ in range(_TRIES):
            models = (await self._daemon.status()).models
            n_open = sum(model.open + model.queued for model in models)
            if n_open == 0:
                break
            await asyncio.sleep(_TRY_AGAIN_S)
        return n_open

    # ── a chat model ──

    async def _chat(self) -> Found:
        context = self._model.context
        long_s, short_s = sizes.windows_s(self._seconds, len(self._clients))
        # How long a word is in tokens, and about how fast the model is.
        tried = await self._step(
            "a short answer",
            self._completion(texts.unique(sizes.SHORT_PROMPT), sizes.FIRST_ANSWER),
            lambda got: f"{number(_rate(got))} tokens/s",
        )
        if tried is None:
            return Found()
        per_word = tried.prompt_tokens / sizes.SHORT_PROMPT
        n_prompt = sizes.prompt_tokens(tried.prompt_tokens / tried.ttft_s, long_s, context)
        n_words = sizes.words(n_prompt, per_word)
        rate = _rate(tried)
        n_tokens: dict[int, int] = {}  # of each answer, by clients
        prompted: list[tuple[Answer, Answer]] = []
        decoded: defaultdict[int, list[list[Answer]]] = defaultdict(list)
        for _ in range(sizes.ROUNDS):
            pair = await self._step("first token", self._long_prompt(n_words), _told_of_prompts)
            if pair is not None:
                prompted.append(pair)
            for n in self._clients:
                length = n_tokens.setdefault(n, sizes.answer_tokens(rate / n, short_s, context))
                answers = await self._step(
                    f"decode, {plural(n, 'client')}",
                    self._together(n, length),
                    lambda got: f"{number(_rate(*got))} tokens/s",
                )
                if answers is not None:
                    decoded[n].append(answers)
                    rate = _rate(*answers)
        return Found(
            prompt=Prompt.of(prompted) if prompted else None,
            decode=tuple(Decode.of(n, n_tokens[n], runs) for n, runs in decoded.items()),
        )

    async def _long_prompt(self, n_words: int) -> tuple[Answer, Answer]:
        """Return the answers to a new prompt and to one that ends differently."""
        beginning = texts.unique(n_words - sizes.END)
        first = await self._completion(f"{beginning} {texts.unique(sizes.END)}", 1)
        return first, await self._completion(f"{beginning} {texts.unique(sizes.END)}", 1)

    async def _together(self, n: int, n_tokens: int) -> list[Answer]:
        return await at_once(
            [self._completion(texts.unique(sizes.SHORT_PROMPT), n_tokens) for _ in range(n)]
        )

    async def _completion(self, prompt: str, n_tokens: int) -> Answer:
        # A plain text, so that no template adds a beginning that all prompts share.
        return await self._daemon.complete(
            {
                "model": self._model.name,
                "prompt": prompt,
                "max_tokens": n_tokens,
            }
            | _DICE
        )

    # ── vectors and scores ──

    async def _vectors(self) -> Found:
        alone_s, window_s = sizes.windows_s(self._seconds, len(self._clients))
        tried = await self._step(
            "one input",
            self._send(1, _INPUT),
            lambda got: duration(got[0]),
        )
        if tried is None:
            return Found()
        n_inputs = sizes.inputs_each(tried[0], window_s)
        alone: list[list[_Sent]] = []
        together: defaultdict[int, list[tuple[float, list[_Sent]]]] = defaultdict(list)
        for _ in range(sizes.ROUNDS):
            sent = await self._step(
                "one input at a time",
                self._back_to_back(alone_s, 1, most=_ALONE),
                lambda got: f"{duration(statistics.median(s for s, _ in got))} each",
            )
            if sent is not None:
                alone.append(sent)
            for n in self._clients:
                got = await self._step(
                    plural(n, "client"),
                    self._all_back_to_back(n, window_s, n_inputs),
                    lambda got: f"{number(inputs_rate(*got, n_inputs))} inputs/s",
                )
                if got is not None:
                    together[n].append(got)
        medians = [statistics.median(s for s, _ in sent) for sent in alone]
        return Found(
            alone_s=Figure.of(medians) if medians else None,
            inputs=tuple(Inputs.of(n, n_inputs, runs) for n, runs in together.items()),
        )

    async def _all_back_to_back(
        self, n: int, window_s: float, n_inputs: int
    ) -> tuple[float, list[_Sent]]:
        """Return the s that all took, and each request."""
        began_s = time.monotonic()
        sent = await at_once([self._back_to_back(window_s, n_inputs) for _ in range(n)])
        return time.monotonic() - began_s, [each for client in sent for each in client]

    async def _back_to_back(
        self, window_s: float, n_inputs: int, *, most: int | None = None
    ) -> list[_Sent]:
        """Send at least one request, and more until the window closes."""
        end_s = time.monotonic() + window_s
        sent = [await self._send(n_inputs, _INPUT)]
        while time.monotonic() < end_s and len(sent) != most:
            sent.append(await self._send(n_inputs, _INPUT))
        return sent

    async def _send(self, n_inputs: int, n_words: int) -> _Sent:
        inputs = [texts.unique(n_words) for _ in range(n_inputs)]
        body: dict[str, Any] = {"model": self._model.name}
        if self._model.kind == "rerank":
            body |= {"query": texts.unique(_QUERY), "documents": inputs}
            return await self._daemon.post("/v1/rerank", body)
        body |= {"input": inputs, "encoding_format": "base64"}
        return await self._daemon.post("/v1/embeddings", body)


async def at_once(requests: Sequence[Coroutine[Any, Any, _Got]]) -> list[_Got]:
    """Return what all came to; the first that fails ends the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(request) for request in requests]
    except ExceptionGroup as several:
        raise several.exceptions[0] from None
    return [task.result() for task in tasks]


def _rate(*answers: Answer) -> float:
    return decode_rate(answers) or 1.0


def _told_of_prompts(pair: tuple[Answer, Answer]) -> str:
    new, again = pair
    return f"{duration(new.ttft_s)} when new, {duration(again.ttft_s)} when its beginning is known"
