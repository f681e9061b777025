"""llama.cpp's library: opened once, its log received, a model file loaded through it.

A ctypes callback handed to llama.cpp lives as long as the process, or the process crashes.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import re
import sys
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edged.log import get_logger
from edged.protocol import EXIT_FAULT, Launch
from edged.worker.engine import BadModelError, EngineMissingError

log = get_logger()

KV_TYPES = {"f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "bf16": 30}
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}

_LEVEL_DEBUG, _LEVEL_WARN, _LEVEL_ERROR, _LEVEL_CONTINUED = 1, 3, 4, 5  # ggml_log_level
# llama.cpp takes the pool of all sequences for the context of one.
_POOL_IS_NO_CONTEXT = "possible training context overflow"
_MEMORY_WORDS = ("failed to allocate", "unable to allocate", "out of memory", "cannot allocate")
# A thread of llama.cpp waits for the others some hundred times in a step, spinning. libgomp's own
# 300,000 turns are longer than a time slice: where a thread has lost its core, the others keep
# theirs busy for nothing. These are as good as more on a quiet box (docs/adr/0005).
_SPINS = "5000"
_WAITING = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}  # the owner's choice
_BUFFER = re.compile(r": +(\S+) +(\S+) buffer size = +([\d.]+) MiB")
_AMX_MENDED = b"edged: amx tile config is whole"  # packaging/amx_tile_config.h


class _Log:
    """Receives llama.cpp's log for the life of the process: keeps a tail, prints what matters."""

    def __init__(self) -> None:
        self.tail: deque[str] = deque(maxlen=12)
        self.buffers: Counter[str] = Counter()  # bytes, by backend and use
        self.quiet = False  # while an interrupt is on: the complaints are the wanted effect
        self._printed = _LEVEL_DEBUG if os.environ.get("EDGEDLOG") == "debug" else _LEVEL_WARN
        self._shown = False
        self.callback: Any = None

    def receive(self, level: int, text: bytes, _user_data: Any) -> None:
        line = text.decode("utf-8", "replace")
        if _POOL_IS_NO_CONTEXT in line:
            return
        if (buffer := _BUFFER.search(line)) is not None:
            self.buffers[f"{buffer[1]} {buffer[2]}"] += int(float(buffer[3]) * (1 << 20))
        continued = level == _LEVEL_CONTINUED
        if not continued:
            debug = self._printed == _LEVEL_DEBUG
            self._shown = not self.quiet and (debug or level in (_LEVEL_WARN, _LEVEL_ERROR))
            if level in (_LEVEL_WARN, _LEVEL_ERROR):
                self.tail.append(line.strip())
        if self._shown:
            sys.stderr.write(line)
            if line.endswith("\n"):
                sys.stderr.flush()

    def take_buffers(self) -> dict[str, int]:
        """Return the buffers since the last call, in bytes by backend and use ("CPU KV")."""
        taken, self.buffers = self.buffers, Counter()
        return dict(taken)


LOG = _Log()  # module level: llama.cpp holds a raw pointer to its callback


def open_library() -> Any:
    """Import llama-cpp-python's bindings and make them ready; raises EngineMissingError."""
    if not _WAITING & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = _SPINS  # libgomp reads it when it is loaded
    try:
        lib: Any = importlib.import_module("llama_cpp.llama_cpp")
        ggml: Any = importlib.import_module("llama_cpp._ggml").libggml
    except (ImportError, OSError, RuntimeError) as error:
        raise EngineMissingError(
            f"the llama.cpp engine is not installed here ({error}); "
            'install it with: pip install "llama-cpp-python>=0.3.36,<0.4"'
        ) from error
    if LOG.callback is None:
        LOG.callback = lib.llama_log_callback(LOG.receive)
        lib.llama_log_set(LOG.callback, None)
        if ggml.ggml_backend_dev_count() == 0:  # a build whose backends are modules
            folder = Path(lib.__file__).parent / "lib"
            ggml.ggml_backend_load_all_from_path(ctypes.c_char_p(os.fsencode(folder)))
        lib.llama_backend_init()
    return lib


def has_broken_amx(lib: Any) -> bool:
    """Tell whether this build of llama.cpp dies in its first matrix product on AMX machines.

    GCC before 11.5, 12.4 and 13.3 drops most of the tile configuration (GCC bug 114098), unless
    it was compiled with edged's own header for it, which leaves a mark.
    """
    if b"AMX_INT8 = 1" not in lib.llama_print_system_info():
        return False
    # One file, or one for each kind of CPU.
    files = (Path(lib.__file__).parent / "lib").glob("libggml-cpu*.so")
    codes = [file.read_bytes() for file in files]
    if any(_AMX_MENDED in code for code in codes):
        return False
    compilers = re.findall(rb"GCC: \([^)]*\) (\d+)\.(\d+)", b"".join(codes))
    fixed_in = {11: 5, 12: 4, 13: 3}
    broken = any(int(minor) < fixed_in.get(int(major), 0) for major, minor in compilers)
    if broken:
        log.warning(
            "engine.slow_build",
            reason="llama.cpp was compiled for AMX by a GCC that miscompiles it",
            action="compile it again as edged's packaging/setup-venv does, for more speed",
        )
    return broken


def load_model(
    lib: Any, path: Path, gpu_layers: int, progress: Callable[[float], bool]
) -> tuple[Any, Any]:
    """Return (what must live as long as the model, the model).

    `progress` is called in this thread with 0…1 and answers False to give up. Raises
    BadModelError, or MemoryError where the memory did not suffice.
    """
    LOG.tail.clear()
    if path.is_dir():
        raise BadModelError(f"{path} is a folder; name the GGUF file inside it")
    if not path.is_file():
        raise BadModelError(f"{path} does not exist or is not a file")
    params = lib.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    params.use_extra_bufts = not has_broken_amx(lib)
    callback = lib.llama_progress_callback(lambda fraction, _data: progress(fraction))
    params.progress_callback = callback
    model = lib.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise load_error(f"llama.cpp cannot load {path}")
    if lib.llama_model_has_encoder(model):
        raise BadModelError(f"{path} is an encoder-decoder model, which edged does not run")
    return callback, model


def metadata(lib: Any, model: Any, key: str) -> str | None:
    """Return a metadata value of the file as text."""
    out = ctypes.create_string_buffer(1024)
    n = lib.llama_model_meta_val_str(model, key.encode(), out, len(out))
    return out.value.decode("utf-8", "replace") if n >= 0 else None


_SEMAPHORE_BYTES = 64  # more than any libc's sem_t
_MOST_NODES = 2**31 - 1  # SEM_VALUE_MAX; a step has thousands


class Interrupt:
    """Makes a running decode return at its next node, and tells that it goes from node to node.

    `set` and `pulse` may be used from any thread.
    """

    def __init__(self, lib: Any) -> None:
        self._callback_type = lib.ggml_abort_callback
        self._libc = ctypes.CDLL(None)
        self._semaphore = ctypes.create_string_buffer(_SEMAPHORE_BYTES)
        self._earlier = 0
        self._refill(_MOST_NODES)

    def install(self, params: Any) -> None:
        """Put it into the parameters of a context, which must not outlive it."""
        # Called by one of ggml's threads before every node. A Python callback would fight for the
        # GIL there, so the callback is libc's sem_trywait: it counts down and says 0, which goes
        # on, and at zero it says -1, which stops.
        count = ctypes.cast(self._libc.sem_trywait, ctypes.c_void_p).value
        params.abort_callback = self._callback_type(count)
        params.abort_callback_data = ctypes.addressof(self._semaphore)

    def set(self) -> None:
        """Interrupt."""
        LOG.quiet = True
        self._refill(0)

    def clear(self) -> None:
        """Take it back."""
        self._earlier = self.pulse
        self._refill(_MOST_NODES)
        LOG.quiet = False

    @property
    def pulse(self) -> int:
        """A number that is another one whenever a node was begun since it was last asked for."""
        left = ctypes.c_int()
        self._libc.sem_getvalue(self._semaphore, ctypes.byref(left))
        return (self._earlier + _MOST_NODES - left.value) % _MOST_NODES

    def _refill(self, n: int) -> None:
        self._libc.sem_init(self._semaphore, 0, n)


def open_context(
    lib: Any, model: Any, launch: Launch, interrupt: Interrupt, *, unit: str, **own: Any
) -> Any:
    """Return a context of `launch.pool` units; `own`: parameters beside those of every runner."""
    settings = launch.llamacpp
    assert settings is not None
    kv_type = KV_TYPES.get(settings.kv_type)
    if kv_type is None:
        known = ", ".join(KV_TYPES)
        raise BadModelError(f"kv_type {settings.kv_type!r} is unknown; one of {known}")
    params = lib.llama_context_default_params()
    params.n_ctx = launch.pool
    params.flash_attn_type = FLASH_ATTENTION[settings.flash_attention]
    params.type_k = params.type_v = kv_type
    params.kv_unified = True
    params.swa_full = settings.full_window
    params.no_perf = True
    for name, value in own.items():
        setattr(params, name, value)
    interrupt.install(params)
    context = lib.llama_init_from_model(model, params)
    if not context:
        raise load_error(f"llama.cpp cannot make a context of {launch.pool} {unit}")
    return context


def leave_process() -> None:
    """Leave a context beyond repair with the process; the daemon starts a new one."""
    os._exit(EXIT_FAULT)


def load_error(what: str) -> Exception:
    """Return the error for a load that failed, with what llama.cpp said about it."""
    reason = " / ".join(LOG.tail) or "it gave no reason"
    message = f"{what}: {reason}"
    if any(word in reason.lower() for word in _MEMORY_WORDS):
        return MemoryError(message)
    return BadModelError(message)
