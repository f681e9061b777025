"""What the API needs from the daemon.

`edged.daemon.Daemon` is the real one; tests of the app bring a small one of their own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from litestar import Request
from msgspec import Struct

from edged import protocol
from edged.api.access import Access
from edged.metrics import Metrics
from edged.plan import Diff, Plan
from edged.protocol import Event
from edged.status import FetchStatus, Status
from edged.store.responses import Responses


class Applied(Struct, frozen=True):
    """What a reload brought into force; `seconds` to decide, workers follow by themselves."""

    generation: int
    seconds: float
    change: Diff


class Box(Protocol):
    """The daemon as the API sees it."""

    @property
    def plan(self) -> Plan:
        """The plan in force; a reload replaces it as a whole."""
        ...

    @property
    def access(self) -> Access:
        """The keys in force."""
        ...

    def ca(self) -> bytes | None:
        """Return the certificate of the box's own CA, PEM; None where it has none in use."""
        ...

    @property
    def metrics(self) -> Metrics:
        """Counters that live as long as the daemon."""
        ...

    @property
    def responses(self) -> Responses:
        """The stored responses; opened with the first use."""
        ...

    def generate(self, name: str, request: protocol.Request) -> AsyncGenerator[Event, None]:
        """Yield the events of `request` on the model of this name; closing the generator aborts.

        The model's own sampling settings stand where the request is silent.

        Raises EdgedError, at the first step or later.
        """
        ...

    def fetching(self, name: str) -> FetchStatus | None:
        """Return how far the files are of a model that cannot run without them, else None."""
        ...

    def status(self) -> Status:
        """Return the state of everything, now; cheap, never waits."""
        ...

    @property
    def admin_socket(self) -> str:
        """Path of the socket whose clients may give orders; "" where there is none."""
        ...

    async def reload(self) -> Applied:
        """Bring models.toml into force now; raises ConfigRefused with all that is wrong."""
        ...

    async def load(self, name: str) -> None:
        """Load a model and return when it serves; ends a `drain` of it.

        Raises, as a request for it would: ModelNotFound, ModelFailed, InsufficientMemory, ….
        """
        ...

    async def unload(self, name: str) -> None:
        """Let its requests finish, stop its worker, return when it is gone.

        The next request loads it again. Raises ModelNotFound.
        """
        ...

    async def drain(self, name: str) -> None:
        """As `unload`, and admit no request until `load`, or a start of the daemon."""
        ...

    def ready(self) -> tuple[bool, list[str]]:
        """Return whether every startup model serves, and one line for each that does not."""
        ...


def box_of(request: Request[Any, Any, Any]) -> Box:
    """Return the box that the app of this request stands for."""
    box: Box = request.app.state["box"]
    return box
