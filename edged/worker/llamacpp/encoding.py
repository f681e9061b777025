"""When images and sounds are encoded: beside the engine thread, which goes on with its streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from edged.errors import ShuttingDown
from edged.worker.llamacpp.multimodal import Projector
from edged.worker.llamacpp.prepare import Prepared

_LONGEST_S = 600.0  # of one image or sound, after which the worker counts as hung


class Encoder:
    """The loop's side of a projector."""

    def __init__(self, projector: Projector) -> None:
        self._projector = projector
        self._n_reports = 0  # of a long encoding under way

    async def encoded(self, prepared: Prepared, closing: Callable[[], bool]) -> Prepared:
        """Add the vectors of a request's images and sounds; stops when nobody waits any more.

        In a thread of its own that ends with it: OpenMP's team for it, of which two are too many,
        then ends as well. Raises EdgedError.
        """
        wanted = True
        thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
        try:
            vectors = await asyncio.get_running_loop().run_in_executor(
                thread,
                self._projector.encode,
                prepared.pieces,
                lambda: wanted and not closing(),
            )
        finally:
            wanted = False
            thread.shutdown(wait=False)
        if len(vectors) < len(prepared.pieces):
            raise ShuttingDown("the model is being stopped; try again")
        # What they were computed from is of no more use.
        pieces = tuple(piece._replace(chunk=None, owner=None) for piece in prepared.pieces)
        return prepared._replace(pieces=pieces, vectors=tuple(vectors))

    def progress(self) -> int:
        """Return what has moved: pieces that were encoded, and looks at one that takes long."""
        since = self._projector.busy_since_s
        if since is not None and time.monotonic() - since < _LONGEST_S:
            self._n_reports += 1
        return self._projector.n_encoded + self._n_reports

    async def close(self) -> None:
        """Free the projector, once the piece that is being encoded is done."""
        await asyncio.to_thread(self._projector.close)
