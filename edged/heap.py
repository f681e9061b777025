"""glibc's allocator, told to give back what is free: both processes live for months."""

from __future__ import annotations

import ctypes

# Of mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_LARGE_BYTES = 128 << 10


def use_one_arena() -> None:
    """Let all threads allocate from one heap; before the first thread.

    With an arena for each thread what one frees is of no use to another. The interpreter is shared
    anyway. Another libc than glibc is left as it is.
    """
    _tell((_M_ARENA_MAX, 1))


def give_back_large_blocks() -> None:
    """Let blocks from 128 KiB on go back to the box when they are freed.

    glibc raises that bound by itself after each large block, up to 32 MiB, and then keeps what lies
    below the last one in use.
    """
    _tell((_M_MMAP_THRESHOLD, _LARGE_BYTES), (_M_TRIM_THRESHOLD, _LARGE_BYTES))


def _tell(*options: tuple[int, int]) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc's
        for option, value in options:
            libc.mallopt(option, value)
