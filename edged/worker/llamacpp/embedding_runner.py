"""Everything that calls llama.cpp to make vectors and scores.

`EmbeddingRunner` belongs to the engine thread once it is loaded, except for `interrupt`, which
any thread may call, and `vocab`, which is read-only.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from edged.protocol import Launch
from edged.worker.engine import BadModelError
from edged.worker.llamacpp import library
from edged.worker.llamacpp.raw_batch import RawBatch
from edged.worker.llamacpp.runner import DecodeError
from edged.worker.llamacpp.vocabulary import Vocab

POOLING = {"mean": 1, "cls": 2, "last": 3, "rank": 4}

_MOST_SEQUENCES = 64  # inputs of one batch
_MOST_STATES = 4  # the same for a recurrent model, each of which costs a whole state
_ABORTED = 2
_SOFTMAX_AT_THE_END = ("qwen3", "qwen3vl")  # their classifier gives probabilities, not logits


class Frame(Struct, frozen=True):
    """Tokens before a query, between it and its document, and after the document."""

    head: list[int]
    middle: list[int]
    tail: list[int]


class EmbeddingRunner:
    """One model with one context that pools. Memory of a batch is gone with the next one.

    The constructor loads the file; `progress` is called in its thread with 0…1 and answers False
    to give up. Raises BadModelError, EngineMissingError, or MemoryError and RuntimeError for
    faults that may pass.
    """

    def __init__(self, launch: Launch, progress: Callable[[float], bool]) -> None:
        settings = launch.llamacpp
        if settings is None or settings.pooling is None:
            raise BadModelError("the launch carries no llama.cpp settings, or no pooling")
        self._lib = lib = library.open_library()
        self._settings = settings
        self._progress, self._model = library.load_model(
            lib, Path(launch.path), settings.gpu_layers, progress
        )
        model = self._model
        self.vocab = Vocab(lib, model, frozenset())
        self.architecture = library.metadata(lib, model, "general.architecture") or "unknown"
        self._pooling = settings.pooling
        rank = settings.pooling == "rank"
        width = lib.llama_model_n_cls_out if rank else lib.llama_model_n_embd_out
        self.width = int(width(model))  # of a row
        self.gives_probabilities = rank and self.architecture in _SOFTMAX_AT_THE_END
        stateful = lib.llama_model_is_recurrent(model) or lib.llama_model_is_hybrid(model)
        self.sequences = _MOST_STATES if stateful else _MOST_SEQUENCES
        self.batch = settings.batch  # tokens of inputs that are computed together
        self._interrupt = library.Interrupt(lib)
        self._room = self.batch
        self._context = self._open_context(launch)
        self._memory = lib.llama_get_memory(self._context)
        # Where tokens see only those before them and the last one is what counts, a long input is
        # read in parts. Elsewhere all of it must be in one batch, however long.
        causal = bool(self._memory) and lib.llama_get_causal_attn(self._context)
        self._in_parts = causal and settings.pooling in ("last", "rank")
        if not self._in_parts and launch.pool > self.batch:
            lib.llama_free(self._context)
            self._room = launch.pool
            self._context = self._open_context(launch)
            self._memory = lib.llama_get_memory(self._context)
        self._batch = RawBatch(lib, self._room)
        self._batch.outputs[:] = 1
        self.threads = settings.threads_batch  # of the next batch
        self._threads = self.threads  # what llama.cpp was told
        self.build = f"llama.cpp-{importlib.metadata.version('llama-cpp-python')}"
        self._warm_up()

    def _open_context(self, launch: Launch) -> Any:
        threads = self._settings.threads_batch
        return library.open_context(
            self._lib,
            self._model,
            launch,
            self._interrupt,
            unit="tokens",
            embeddings=True,
            pooling_type=POOLING[self._pooling],
            n_batch=self._room,
            n_ubatch=self._room,
            n_seq_max=self.sequences,
            n_threads=threads,
            n_threads_batch=threads,
        )

    def _warm_up(self) -> None:
        token = self.vocab.bos if self.vocab.bos is not None else self.vocab.eos or 0
        rows = self.compute([[token] * min(4, self._room)])
        if rows is None or not np.isfinite(rows).all():
            raise BadModelError("the model computes values that are no numbers: is it damaged?")

    @property
    def rerank_template(self) -> str | None:
        """The file's own text around `{query}` and `{document}`, if it has one."""
        text = self._lib.llama_model_chat_template(self._model, b"rerank")
        return text.decode("utf-8", "replace") if text else None

    @property
    def frame(self) -> Frame:
        """What stands around query and document where the file has no text for it."""
        lib, vocab = self._lib, self._lib.llama_model_get_vocab(self._model)
        bos, eos, sep = (
            [token] if 0 <= (token := int(getter(vocab))) < self.vocab.n_tokens else []
            for getter in (lib.llama_vocab_bos, lib.llama_vocab_eos, lib.llama_vocab_sep)
        )
        head = bos if lib.llama_vocab_get_add_bos(vocab) else []
        add_sep = sep if lib.llama_vocab_get_add_sep(vocab) else []
        if lib.llama_vocab_get_add_eos(vocab):
            end = eos or sep
            return Frame(head, end + add_sep, end)
        # BERT's own: [CLS] query [SEP] document [SEP]; llama-server leaves out the last one.
        return Frame(head, add_sep, add_sep)

    # ── a batch ──

    def compute(self, inputs: Sequence[list[int]]) -> npt.NDArray[np.float32] | None:
        """Return a row for each input, its vector or its score; None: it was interrupted.

        At most `sequences` inputs, which have `batch` tokens in all, or one of any length.
        Raises DecodeError when the context is beyond repair.
        """
        rows = np.empty((len(inputs), self.width), np.float32)
        if sum(map(len, inputs)) <= self._room:
            done = self._decode([(i, 0, tokens) for i, tokens in enumerate(inputs)])
        else:
            assert len(inputs) == 1
            assert self._in_parts
            tokens = inputs[0]
            done = all(
                self._decode([(0, at, tokens[at : at + self._room])])
                for at in range(0, len(tokens), self._room)
            )
        if done:
            for i, row in enumerate(rows):
                found = self._lib.llama_get_embeddings_seq(self._context, i)
                if not found:
                    raise DecodeError(f"llama.cpp gave no vector for sequence {i}")
                row[:] = np.ctypeslib.as_array(found, shape=(self.width,))
        if self._memory:
            self._lib.llama_memory_clear(self._memory, False)
        return rows if done else None

    def _decode(self, chunks: Sequence[tuple[int, int, list[int]]]) -> bool:
        """Run (sequence, first position, tokens) as one batch; False: interrupted."""
        batch, n = self._batch, 0
        for owner, position, tokens in chunks:
            end = n + len(tokens)
            batch.tokens[n:end] = tokens
            batch.positions[n:end] = np.arange(position, position + len(tokens))
            batch.owners[n:end] = owner
            n = end
        batch.raw.n_tokens = n
        if self.threads != self._threads:
            self._lib.llama_set_n_threads(self._context, self.threads, self.threads)
            self._threads = self.threads
        code: int = self._lib.llama_decode(self._context, batch.raw)
        if code == _ABORTED:
            self._interrupt.clear()
            return False
        if code:
            raise DecodeError(f"llama_decode returned {code}: {' / '.join(library.LOG.tail)}")
        return True

    def interrupt(self) -> None:
        """Make the running batch end at its next node. From any thread."""
        self._interrupt.set()

    def resume(self) -> None:
        """Take the interrupt back."""
        self._interrupt.clear()

    @property
    def pulse(self) -> int:
        """Another number whenever the running decode went on. From any thread."""
        return self._interrupt.pulse

    def close(self) -> None:
        """Free context and model; nothing may be called afterwards."""
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)
