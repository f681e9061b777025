"""Grammars: text becomes an automaton, the automaton bans tokens in a row of logits.

The automata are llguidance's. What a client writes as schema, regular expression or grammar is
foreign code for it, so it is compiled beside the loop in threads of its own, with limits:
* on the text, because llguidance recurses through rules that use each other (6,000 rules in a
  chain overflow a stack of 8 MiB, which kills the process), and these threads have large stacks;
* on the time and memory of automata, by llguidance's own fuel, before and while they run.

The first step of every automaton is taken here as well: it is the most expensive one, and shows
what can match nothing. All that is wrong is an InvalidRequest before the answer starts.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError

import llguidance
import numpy as np
import numpy.typing as npt

from edged.errors import InvalidRequest, ServiceUnavailable, ShuttingDown
from edged.worker.llamacpp.vocabulary import Vocab

Row = npt.NDArray[np.float32]

_LONGEST = 1 << 18  # characters of a grammar
_STACK_BYTES = 512 << 20  # of address space; pages are taken as they are touched
_N_THREADS = 2
_PATIENCE_S = 20.0
_MOMENT_S = 0.05
_MOST_KEPT = 64
_MOST_TEXT = 1 << 20  # characters of the kept ones: long ones take 15 to 20 MB each
_LONGEST_REASON = 500
_LONG_WORD = re.compile(r"^(.{20}).{60,}(.{20})$")
_MOST_STATES = 50_000  # of 1 to 2 kB: a runaway grammar costs at most 100 MB


class GrammarStuckError(Exception):
    """The automaton met one of its limits in the middle of an answer."""


class Bans:
    """What is added to a row of logits for the bits of a mask. The engine thread's."""

    # By the value of a byte, its lowest bit first: a lookup takes 40 us for 152,000 tokens, a tenth
    # of what indexing by the tokens takes.
    _OF_BYTE = np.where(
        np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"),
        0,
        -np.inf,
    ).astype(np.float32)

    def __init__(self, n_tokens: int) -> None:
        self.bits = np.zeros((n_tokens + 31) // 32, np.uint32)
        self._bytes = self.bits.view(np.uint8)
        self._rows = np.zeros((len(self._bytes), 8), np.float32)
        self._added = self._rows.reshape(-1)[:n_tokens]

    def put(self, row: Row) -> None:
        """Ban the tokens whose bit is not set."""
        np.take(self._OF_BYTE, self._bytes, axis=0, out=self._rows, mode="clip")
        row += self._added


class Guide:
    """Where one generation stands in its grammar. The engine thread's, once it is compiled."""

    __slots__ = ("_bans", "_matcher")

    def __init__(self, matcher: llguidance.LLMatcher, bans: Bans) -> None:
        self._matcher = matcher
        self._bans = bans

    def narrow(self, row: Row) -> None:
        """Ban the tokens in `row` that cannot come next. Raises GrammarStuckError."""
        bits = self._bans.bits
        self._matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
        if self._matcher.is_error():
            raise GrammarStuckError(_reason(self._matcher.get_error()))
        self._bans.put(row)

    def take(self, token: int) -> None:
        """Go on by the chosen token. Raises GrammarStuckError."""
        if not self._matcher.consume_token(token):
            raise GrammarStuckError(_reason(self._matcher.get_error()))

    def takes(self, tokens: Sequence[int]) -> bool:
        """Go on by tokens that are written already; False if they do not fit."""
        return self._matcher.try_consume_tokens(list(tokens)) == len(tokens)

    def allows(self, tokens: Sequence[int]) -> bool:
        """Tell whether these tokens may come next."""
        return self._matcher.validate_tokens(list(tokens)) == len(tokens)

    @property
    def complete(self) -> bool:
        """The answer may end here."""
        return self._matcher.is_accepting()

    @property
    def over(self) -> bool:
        """The answer must end here: nothing but an end token can follow."""
        return self._matcher.is_stopped()


class Grammars:
    """The compiled grammars of one vocabulary, the lately used ones kept. Safe from any thread."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._bans = Bans(vocab.n_tokens)  # one for all: the engine thread uses it at once
        self._tokenizer: llguidance.LLTokenizer | None = None  # a second's work: made when needed
        self._making = threading.Lock()
        # By its text: the automaton at its beginning, or why there is none.
        self._kept: OrderedDict[str, Future[llguidance.LLMatcher | str]] = OrderedDict()
        self._n_characters = 0  # of their texts
        self._keeping = threading.Lock()
        # Verbose messages carry the whole state, the answer's tokens among it.
        self._limits = llguidance.LLParserLimits(
            max_lexer_states=_MOST_STATES, verbose_errors=False
        )
        self._threads = ThreadPoolExecutor(_N_THREADS, thread_name_prefix="grammar")

    async def guide(self, grammar: str, param: str) -> Guide:
        """Return the automaton of a grammar in llguidance's JSON, at its beginning.

        Raises InvalidRequest, about `param`, with the reason why there is none.
        """
        found = await self.ready(grammar, param)
        return Guide(found.deep_copy(), self._bans)

    async def ready(self, grammar: str, param: str) -> llguidance.LLMatcher:
        """Have a grammar compiled, as `guide` does."""
        compiling = self._compiled(grammar)
        if not compiling.done():
            # Shielded: others may wait for the same one.
            waiting = asyncio.shield(asyncio.wrap_future(compiling))
            try:
                await asyncio.wait_for(waiting, _PATIENCE_S)
            except TimeoutError:
                if not compiling.running():
                    raise ServiceUnavailable("the grammars of others are being compiled") from None
                raise InvalidRequest(
                    f"the grammar is not compiled after {_PATIENCE_S:g} s; make it simpler",
                    param=param,
                ) from None
            except asyncio.CancelledError:
                if not compiling.cancelled():
                    raise
                raise ShuttingDown("the model is being stopped; try again") from None
        found = compiling.result()
        if isinstance(found, str):
            raise InvalidRequest(f"this cannot be enforced: {found}", param=param)
        return found

    def guide_now(self, grammar: str, *, wait: bool) -> Guide | None:
        """Return the automaton; None while it is being compiled. Raises GrammarStuckError.

        `wait` for a moment, as most take less; all streams do, in the engine thread.
        """
        try:
            found = self._compiled(grammar).result(_MOMENT_S if wait else 0)
        except FutureTimeoutError:
            return None
        if isinstance(found, str):
            raise GrammarStuckError(found)
        return Guide(found.deep_copy(), self._bans)

    def close(self) -> None:
        """Start nothing more; what is being compiled ends by its own limits."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _compiled(self, grammar: str) -> Future[llguidance.LLMatcher | str]:
        found: Future[llguidance.LLMatcher | str] | None
        if len(grammar) > _LONGEST:
            found = Future()
            found.set_result(
                f"the grammar has {len(grammar)} characters, at most {_LONGEST} are allowed"
            )
            return found
        with self._keeping:
            found = self._kept.get(grammar)
            if found is None:
                before = threading.stack_size(_STACK_BYTES)
                try:
                    found = self._threads.submit(self._compile, grammar)
                finally:
                    threading.stack_size(before)
                self._kept[grammar] = found
                self._n_characters += len(grammar)
                while len(self._kept) > _MOST_KEPT or self._n_characters > _MOST_TEXT:
                    oldest, _ = self._kept.popitem(last=False)
                    self._n_characters -= len(oldest)
            else:
                self._kept.move_to_end(grammar)
            return found

    def _compile(self, grammar: str) -> llguidance.LLMatcher | str:
        """Return the automaton, or why there is none."""
        try:
            matcher = llguidance.LLMatcher(self._words(), grammar, log_level=0, limits=self._limits)
            if not matcher.is_error():
                matcher.compute_bitmask()  # fails where nothing can match
        except Exception as error:  # noqa: BLE001 - whatever foreign code says of foreign text
            return _reason(str(error))
        return _reason(matcher.get_error()) if matcher.is_error() else matcher

    def _words(self) -> llguidance.LLTokenizer:
        with self._making:
            if self._tokenizer is None:
                self._tokenizer = llguidance.LLTokenizer(
                    _Words(self._vocab),
                    n_vocab=self._vocab.n_tokens,
                    eos_token=sorted(self._vocab.ends),
                )
            return self._tokenizer


class _Words(llguidance.TokenizerWrapper):
    """The vocabulary as llguidance wants to see it: its tokens' bytes are those of the output."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self.eos_token_id = min(vocab.ends, default=0)
        self.bos_token_id = vocab.bos
        every = range(vocab.n_tokens)
        silent = {token for token in every if not vocab.piece(token)}
        self.special_token_ids = sorted({*vocab.tags.values(), *vocab.ends, *silent})
        self.tokens = [vocab.spelling(token) or b"-" for token in every]
        self.is_tokenizer_wrapper = True

    def __call__(self, text: str) -> list[int]:
        """Return the tokens of a text that the grammar demands, as the model would write it."""
        vocab, data = self._vocab, text.encode()
        tokens = vocab.tokenize([(text, False)], wrap=False)
        if b"".join(vocab.piece(token) for token in tokens) == data:
            return tokens
        # Vocabularies with a space before every word put one at the start as well.
        lead = vocab.tokenize([("\n", False)], wrap=False)
        led = vocab.tokenize([("\n" + text, False)], wrap=False)[len(lead) :]
        if b"".join(vocab.piece(token) for token in led) == data:
            return led
        return []


def _reason(error: str) -> str:
    """Return what llguidance says, without its state and backtraces, on one line."""
    for mark in ("<state>", "<non-verbose/>", "<backtrace>"):
        error = error.partition(mark)[0]
    # It quotes what it cannot read, all of it.
    error = " ".join(_LONG_WORD.sub(r"\1…\2", word) for word in error.split())
    if error in ("NoExtension", "NoExtensionBias"):
        return "no text can match it"
    return error[:_LONGEST_REASON] or "llguidance gives no reason"
