"""LoRA adapters of one context, by number: loaded, applied, freed. All of it in the engine thread.

Never while the context decodes: a load enters the adapter into the model's own list, which a
decode reads when it makes its graphs anew, and those hold pointers into the adapters in use.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

from edged.worker.llamacpp import library
from edged.worker.llamacpp.sequence import Adapters

_FAILED = "failed to apply lora adapter: "  # llama.cpp's words before its reason


class BadAdapterError(Exception):
    """The file is no adapter of this model; the message says why."""


class Lora:
    """The adapters that lie in memory, and the set that is applied."""

    def __init__(self, lib: Any, model: Any, context: Any) -> None:
        self._lib = lib
        self._model = model
        self._context = context
        self._loaded: dict[int, Any] = {}
        self._applied: Adapters = ()

    def load(self, number: int, path: Path) -> None:
        """Load a file under a number that is new; raises BadAdapterError."""
        assert number not in self._loaded
        log = library.LOG
        log.tail.clear()
        # For each weight that llama.cpp has repacked it warns that the adapter is not.
        log.quiet = True
        try:
            adapter = self._lib.llama_adapter_lora_init(self._model, os.fsencode(path))
        finally:
            log.quiet = False
        if not adapter:
            said = next((line for line in reversed(log.tail)), "it gave no reason")
            raise BadAdapterError(f"llama.cpp cannot load {path}: {said.rpartition(_FAILED)[2]}")
        self._loaded[number] = adapter

    def free(self, number: int) -> None:
        """Free one that no sequence uses."""
        # A new adapter at the address of a freed one would be taken for the applied one.
        if any(number == each for each, _ in self._applied):
            self.use(())
        self._lib.llama_adapter_lora_free(self._loaded.pop(number))

    def use(self, adapters: Adapters) -> None:
        """Apply these and no others from the next decode on, which makes its graph anew."""
        if adapters == self._applied:
            return
        n = len(adapters)
        handles = (self._lib.llama_adapter_lora_p_ctypes * n)()
        scales = (ctypes.c_float * n)()
        for i, (number, scale) in enumerate(adapters):
            handles[i] = self._loaded[number]
            scales[i] = scale
        self._lib.llama_set_adapters_lora(self._context, handles, n, scales)
        self._applied = adapters
