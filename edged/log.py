"""Log events `noun.verb` with fields: console on a terminal, JSON lines elsewhere on request.

Prompts, answers and keys are never logged; what looks like a key all the same (in a path that a
client made up, in somebody's message) is blacked out. Everything goes to stderr; where that is
systemd's journal, lines go there natively, with their fields: `journalctl -u edged EDGED_MODEL=x`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import structlog

from edged import journal
from edged.redaction import without_secrets

_TAIL_LINES = 2000


class Tail:
    """The last lines of the log, for whoever asks over the admin socket. Any thread may write."""

    def __init__(self) -> None:
        self.written = 0  # lines in all; the last of `lines` has this number
        self.lines: deque[str] = deque(maxlen=_TAIL_LINES)
        self.listeners: set[Callable[[], None]] = set()  # called in the thread that writes

    def __call__(self, _logger: Any, _name: str, rendered: Any) -> Any:
        """Take the line on its way, as the last processor of structlog."""
        self.lines.append(str(rendered))
        self.written += 1
        for listener in tuple(self.listeners):
            listener()
        return rendered

    def since(self, number: int) -> list[str]:
        """Return the lines after the one with this number, as far as they are kept."""
        kept = list(self.lines)
        return kept[max(0, len(kept) - max(0, self.written - number)) :]


tail = Tail()


def configure(level: str = "info", *, json: bool = False) -> None:
    """Set up structlog and route the standard library's warnings (uvicorn, asyncio) through it."""
    has_journal = "JOURNAL_STREAM" in os.environ  # it stamps the time itself
    natively = journal.is_stderr() and not json
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
    ]
    if not has_journal:
        processors.append(structlog.processors.TimeStamper(fmt="iso", utc=False))
    if json:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        console = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(),
            pad_event_to=0,
            pad_level=False,
            # structlog's own choice prints local variables, and so the prompts in them
            exception_formatter=structlog.dev.plain_traceback,
        )
        processors.append(_with_fields(console) if natively else console)
    processors += [_without_secrets, tail]
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=_Factory() if natively else structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        handlers=[_ToStructlog()], level=max(threshold, logging.WARNING), force=True
    )


class _Factory:
    """Makes the one logger that speaks to the journal."""

    def __init__(self) -> None:
        self._journal = journal.Journal()

    def __call__(self, *_: Any) -> journal.Journal:
        return self._journal


def _with_fields(render: Callable[[Any, str, Any], str]) -> Callable[[Any, str, Any], str]:
    """Return a processor that renders, and lets the fields go along with the text."""

    def processor(logger: Any, name: str, event: Any) -> str:
        fields = dict(event)  # rendering takes them out
        line = journal.Line(render(logger, name, event))
        line.fields = fields
        return line

    return processor


def _without_secrets(_logger: Any, _name: str, rendered: str) -> str:
    """Black out keys in the rendered line, and in the fields that go with it."""
    line = journal.Line(without_secrets(rendered))
    line.fields = {
        name: without_secrets(value) if isinstance(value, str) else value
        for name, value in getattr(rendered, "fields", {}).items()
    }
    return line


class _ToStructlog(logging.Handler):
    """Hands records of the standard library on as events named after their logger."""

    def emit(self, record: logging.LogRecord) -> None:
        event = record.name.partition(".")[0] + ".message"
        structlog.get_logger().log(
            record.levelno,
            event,
            message=record.getMessage(),
            exc_info=record.exc_info,
        )


def get_logger() -> Any:
    """Return the logger; `log.info("worker.ready", model=…, seconds=…)`."""
    return structlog.get_logger()
