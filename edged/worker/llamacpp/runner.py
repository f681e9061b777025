"""Everything that calls llama.cpp to write text: context, decode, logits, memory cells.

Rules that cost a crash when broken (all of them learned the hard way):
* a ctypes callback handed to llama.cpp lives as long as the process;
* positions, sequence ids and output flags of a batch are filled by hand;
* the return code of `llama_decode` decides what is left in memory (`Decoded`).

`Runner` belongs to the engine thread once it is loaded, except for `interrupt`, which any thread
may call, and `vocab` (`vocabulary.py`), which is read-only.
"""

from __future__ import annotations

import ctypes
import enum
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
from edged.worker.llamacpp.lora import Lora
from edged.worker.llamacpp.multimodal import Projector
from edged.worker.llamacpp.raw_batch import RawBatch, VectorBatch
from edged.worker.llamacpp.sequence import Adapters
from edged.worker.llamacpp.vocabulary import Vocab

Rows = npt.NDArray[np.float32]  # (tokens, vocabulary)

_MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ of llama.cpp

# The names that Hugging Face gives to a model's templates, where it has several.
_CHAT_TEMPLATES = {"default": None, "tool_use": b"tool_use", "rag": b"rag"}


class Decoded(enum.Enum):
    """What became of a batch. Except for DONE, none of its tokens may be counted as computed."""

    DONE = 0
    NO_ROOM = 1  # memory is as it was before
    INTERRUPTED = 2  # parts of the batch may remain in memory: cut or clear its sequences


class DecodeError(RuntimeError):
    """A decode that leaves the context in an unknown state: the process must go."""


class Facts(Struct, frozen=True):
    """What the model file says about itself."""

    architecture: str
    n_vocab: int
    n_ctx_train: int
    n_params: int
    chat_templates: dict[str, str]  # "default" and those with a name; empty: none
    cuttable: bool  # a sequence may be cut or shared at any position that `window` allows
    window: int  # positions that some layers look back on; 0: all layers see all
    build: str


# ── model and context ──


class Runner:
    """One model with one context: fills batches, decodes, shows logits, moves cells.

    The constructor loads the file and takes seconds to minutes; `progress` is called in its thread
    with 0…1 and answers False to give up. Raises BadModelError, EngineMissingError, or
    MemoryError and RuntimeError for faults that may pass.
    """

    def __init__(
        self, launch: Launch, shown: frozenset[str], progress: Callable[[float], bool]
    ) -> None:
        settings = launch.llamacpp
        if settings is None:
            raise BadModelError("the launch carries no llama.cpp settings")
        self._lib = lib = library.open_library()
        self._settings = settings
        self._progress, self._model = library.load_model(
            lib, Path(launch.path), settings.gpu_layers, progress
        )
        self.vocab = Vocab(lib, self._model, shown)
        self.batch = min(max(settings.batch, launch.parallel), launch.pool)
        stateful = bool(
            lib.llama_model_is_recurrent(self._model) or lib.llama_model_is_hybrid(self._model)
        )
        self.sequences = min(launch.parallel + settings.residents, _MAX_SEQUENCES)
        self._interrupt = library.Interrupt(lib)
        self._context = self._open_context(launch)
        self._memory = lib.llama_get_memory(self._context)
        self.threads = (settings.threads, settings.threads_batch)  # decode, prefill: of the next
        self._threads = self.threads  # what llama.cpp was told
        self._batch = RawBatch(lib, self.batch)
        self._views: dict[int, npt.NDArray[np.float32]] = {}
        self._lora = Lora(lib, self._model, self._context)
        self.cells = min(launch.pool, int(lib.llama_n_ctx(self._context)))
        self.facts = self._read_facts(self._warm_up() and not stateful)
        self.projector: Projector | None = None
        if settings.mmproj is not None:
            path = Path(settings.mmproj)
            self.projector = Projector(lib, self._model, path, threads=settings.threads_batch)

    def _open_context(self, launch: Launch) -> Any:
        settings = self._settings
        return library.open_context(
            self._lib,
            self._model,
            launch,
            self._interrupt,
            unit="cells",
            n_batch=self.batch,
            n_ubatch=self.batch,  # one ubatch a decode
            n_seq_max=self.sequences,
            n_outputs_max=self.sequences,
            n_threads=settings.threads,
            n_threads_batch=settings.threads_batch,
        )

    def _warm_up(self) -> bool:
        """Decode once, so that the first request finds touched pages; tell if cutting works."""
        if self._lib.llama_pooling_type(self._context) != 0:
            raise BadModelError("this model embeds or ranks text and cannot write any")
        token = self.vocab.bos if self.vocab.bos is not None else self.vocab.eos or 0
        n = min(4, self.batch, self.cells)
        if self.decode([(0, 0, [token] * n, 1)]) is not Decoded.DONE:
            raise RuntimeError("the first decode found no room; raise context or parallel")
        cuttable = bool(self._lib.llama_memory_seq_rm(self._memory, 0, n - 1, -1))
        self._lib.llama_memory_clear(self._memory, True)
        return cuttable

    def _read_facts(self, cuttable: bool) -> Facts:
        lib, model = self._lib, self._model
        found = {
            name: text.decode("utf-8", "replace")
            for name, key in _CHAT_TEMPLATES.items()
            if (text := lib.llama_model_chat_template(model, key))
        }
        return Facts(
            architecture=self.metadata("general.architecture") or "unknown",
            n_vocab=self.vocab.n_tokens,
            n_ctx_train=lib.llama_model_n_ctx_train(model),
            n_params=lib.llama_model_n_params(model),
            chat_templates=found,
            cuttable=cuttable,
            window=lib.llama_model_n_swa(model),
            build=f"llama.cpp-{importlib.metadata.version('llama-cpp-python')}",
        )

    @property
    def stretched(self) -> bool:
        """The context is longer than RoPE's own: some models then turn with other factors."""
        name = f"{self.facts.architecture}.rope.scaling.original_context_length"
        own = self.metadata(name) or self.facts.n_ctx_train
        return int(self._lib.llama_n_ctx_seq(self._context)) > int(own)

    @property
    def forgets(self) -> bool:
        """Some layers keep little more than their window."""
        return self.facts.window > 0 and not self._settings.full_window

    def metadata(self, key: str) -> str | None:
        """Return a metadata value of the file as text."""
        return library.metadata(self._lib, self._model, key)

    # ── a step ──

    def decode(self, chunks: Sequence[tuple[int, int, list[int], int]]) -> Decoded:
        """Run one batch of chunks (sequence, first position, tokens, how many of them get logits).

        The last ones get them. At most `batch` tokens in all, positions of a sequence without
        gaps. Raises DecodeError when the context is beyond repair.
        """
        batch, n = self._batch, 0
        alone = True
        for owner, position, tokens, wanted in chunks:
            end = n + len(tokens)
            batch.tokens[n:end] = tokens
            batch.positions[n:end] = self._range(position, len(tokens))
            batch.owners[n:end] = owner
            batch.outputs[n:end] = 0
            if wanted:
                batch.outputs[end - wanted : end] = 1
            alone = alone and len(tokens) == max(1, wanted)
            n = end
        batch.raw.n_tokens = n
        self._set_threads(decoding=alone)
        return self._decode(batch.raw)

    # ── adapters ──

    def load_adapter(self, number: int, path: Path) -> None:
        """Load a LoRA adapter under this number; raises BadAdapterError."""
        self._lora.load(number, path)

    def free_adapter(self, number: int) -> None:
        """Free an adapter that no sequence uses any more."""
        self._lora.free(number)

    def use(self, adapters: Adapters) -> None:
        """Let these adapters change the model from the next decode on."""
        self._lora.use(adapters)

    def decode_vectors(
        self,
        owner: int,
        positions: npt.NDArray[np.int32],
        vectors: npt.NDArray[np.float32],
        *,
        whole: bool,
    ) -> Decoded:
        """Run vectors in the place of tokens, of sequence `owner`; no logits come of it.

        At most `batch` of them; `positions` as `VectorBatch` has them. `whole`: they see each
        other in both directions. Raises DecodeError like `decode`.
        """
        batch = VectorBatch(self._lib, owner, positions, vectors)
        self._set_threads(decoding=False)
        if not whole:
            return self._decode(batch.raw)
        self._lib.llama_set_causal_attn(self._context, False)
        try:
            return self._decode(batch.raw)
        finally:
            self._lib.llama_set_causal_attn(self._context, True)

    def _decode(self, raw: Any) -> Decoded:
        code: int = self._lib.llama_decode(self._context, raw)
        if code == Decoded.INTERRUPTED.value:
            self.resume()
        if code in (0, 1, 2):
            return Decoded(code)
        raise DecodeError(f"llama_decode returned {code}: {' / '.join(library.LOG.tail)}")

    @staticmethod
    def _range(start: int, n: int) -> npt.NDArray[np.int32] | int:
        return start if n == 1 else np.arange(start, start + n, dtype=np.int32)

    def _set_threads(self, *, decoding: bool) -> None:
        # llama.cpp takes the batch threads as soon as a batch has two tokens, so that eight
        # streams would decode with the threads meant for prefill.
        decode, prefill = self.threads
        wanted = (decode, decode if decoding else prefill)
        if wanted != self._threads:
            self._lib.llama_set_n_threads(self._context, *wanted)
            self._threads = wanted

    def rows(self) -> Rows:
        """Return the logits of the last decode: a row for each token that got them, in order.

        A writable view of llama.cpp's own buffer, valid until the next decode.
        """
        pointer = self._lib.llama_get_logits(self._context)
        address = ctypes.addressof(pointer.contents)
        view = self._views.get(address)
        if view is None:
            self._views.clear()  # the buffer moved
            shape = (self.sequences, self.vocab.n_tokens)
            view = self._views[address] = np.ctypeslib.as_array(pointer, shape=shape)
        return view

    def interrupt(self) -> None:
        """Make the running decode return INTERRUPTED at its next node. From any thread.

        Not where a decode moves the states of other sequences about as well: it would spoil them
        all (`Scheduler.interrupted`), so a step is left to its end.
        """
        if self.facts.cuttable:
            self._interrupt.set()

    def resume(self) -> None:
        """Take the interrupt back."""
        self._interrupt.clear()

    @property
    def pulse(self) -> int:
        """Another number whenever the running decode went on. From any thread."""
        return self._interrupt.pulse

    # ── cells ──

    def share(self, source: int, target: int, n: int) -> None:
        """Let sequence `target` use the first `n` positions of `source`; no data moves.

        A recurrent state goes along as it is, and is copied by the first who writes on: `n` has to
        be where `source` stands, unless it is `cuttable`.
        """
        self._lib.llama_memory_seq_cp(self._memory, source, target, 0, n)

    def cut(self, sequence: int, start: int) -> None:
        """Remove the positions from `start` on; 0 clears the sequence."""
        if not self._lib.llama_memory_seq_rm(self._memory, sequence, start, -1):
            raise DecodeError(f"sequence {sequence} cannot be cut at {start}")

    def state_bytes(self, sequence: int) -> int:
        """Return the size of a sequence's whole state; 0 if llama.cpp cannot tell."""
        return int(self._lib.llama_state_seq_get_size(self._context, sequence))

    def save(self, sequence: int, room: memoryview) -> bool:
        """Copy a sequence's state into `room`, of `state_bytes`; False if that fails."""
        n = self._lib.llama_state_seq_get_data(self._context, _pointer(room), room.nbytes, sequence)
        return bool(n == room.nbytes)

    def restore(self, sequence: int, state: memoryview) -> bool:
        """Give an empty sequence what `save` took; False if that fails, and it is to be cleared."""
        n = self._lib.llama_state_seq_set_data(
            self._context, _pointer(state), state.nbytes, sequence
        )
        return bool(n == state.nbytes)

    def first_position(self, sequence: int) -> int:
        """Return the smallest position that all layers still hold, or -1."""
        return int(self._lib.llama_memory_seq_pos_min(self._memory, sequence))

    def last_position(self, sequence: int) -> int:
        """Return the largest position in memory, or -1."""
        return int(self._lib.llama_memory_seq_pos_max(self._memory, sequence))

    def close(self) -> None:
        """Free context and model; nothing may be called afterwards."""
        self._views.clear()
        if self.projector is not None:
            self.projector.close()
        self._lib.llama_free(self._context)
        self._lib.llama_model_free(self._model)


def _pointer(memory: memoryview) -> Any:
    """Return the address of a memoryview, valid as long as it is."""
    return np.frombuffer(memory, np.uint8).ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
