"""A call on its way to the client, in pieces.

So that no client ever gets arguments that are no JSON, a call is held until it is whole, unless a
grammar guarantees that it becomes one (`enforced`): then its arguments stream.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable

from edged.protocol import CallDelta
from edged.worker.output.source import Source
from edged.worker.output.syntax import Trigger

_LETTERS = string.ascii_letters + string.digits


class Pieces:
    """The calls of one answer: which one is being read, and what of it was handed out."""

    def __init__(
        self,
        source: Source,
        emit: Callable[[CallDelta], None],
        *,
        parallel: bool,
        id_length: int = 0,
    ) -> None:
        """`id_length`: letters and digits of a fresh id; 0: as OpenAI has them.

        The source's mark is moved to the end of what was handed out.
        """
        self._source = source
        self._emit = emit
        self._parallel = parallel
        self._id_length = id_length
        self._ids: set[str] = set()
        self._n = 0
        self._name = ""  # of the call that is being read, once it is certain
        self._id = ""
        self._held: list[str] = []
        self._sent = False
        self._waits = False
        self.enforced = False
        self.trigger: Trigger | None = None

    @property
    def called(self) -> bool:
        """A call was handed out, or a part of one."""
        return self._n > 0 or self._sent

    @property
    def full(self) -> bool:
        """No further call is allowed."""
        return self._n > 0 and not self._parallel

    @property
    def begun(self) -> bool:
        """The call that is being read is certainly one, of a tool that may be called."""
        return bool(self._name)

    def begin(self, name: str, call_id: str | None = None, *, waits: bool = False) -> None:
        """Take the name of the next call. `waits`: its id may come after its arguments."""
        self._name, self._id, self._waits = name, call_id or "", waits

    def name_id(self, call_id: str) -> None:
        """Take the id that came late."""
        if not self._sent:
            self._id = call_id

    def push(self, text: str) -> None:
        """Take a piece of the arguments: with what came before, the beginning of JSON."""
        if self.enforced and not self._waits:
            if self._held:  # written before the grammar took over
                text = "".join([*self._held, text])
                self._held.clear()
            self._send(text)
        else:
            self._held.append(text)

    def end(self) -> None:
        """Hand out the call, which is whole."""
        if self._held or not self._sent:
            self._send("".join(self._held))
        self._source.mark()
        self._n += 1
        self._forget()
        if not self.enforced:
            self.trigger = None

    def cut(self) -> bool:
        """Hand out the call that the end of the answer has cut off; False if there is none."""
        if not (self._name and (self._sent or self._held)):
            return False
        if self._held:
            self._send("".join(self._held))
        self._n += 1
        self._forget()
        return True

    def abandon(self) -> None:
        """Forget the call that turned out to be none."""
        self._n += self._sent  # what was handed out stays a call
        self._forget()
        self.trigger = None

    def _send(self, text: str) -> None:
        if self._sent:
            self._emit(CallDelta(self._n, arguments=text))
        else:
            if not self._id or self._id in self._ids:
                self._id = self._new_id()
            self._ids.add(self._id)
            self._emit(CallDelta(self._n, self._id, self._name, text))
        self._sent = True
        self._source.mark()

    def _forget(self) -> None:
        self._name = self._id = ""
        self._held, self._sent, self._waits = [], False, False

    def _new_id(self) -> str:
        n = self._id_length
        word = "".join(secrets.choice(_LETTERS) for _ in range(n or 24))
        return word if n else f"call_{word}"
