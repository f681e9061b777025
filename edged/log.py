"""Log events `noun.verb` with fields: console on a terminal, JSON lines elsewhere on request.

Prompts, answers and keys are never logged. Everything goes to stderr; under systemd that is the
journal, which stamps the time itself.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import structlog


def configure(level: str = "info", *, json: bool = False) -> None:
    """Set up structlog and route the standard library's warnings (uvicorn, asyncio) through it."""
    journal = "JOURNAL_STREAM" in os.environ
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
    ]
    if not journal:
        processors.append(structlog.processors.TimeStamper(fmt="iso", utc=False))
    if json:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        processors.append(
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                pad_event_to=0,
                pad_level=False,
                # structlog's own choice prints local variables, and so the prompts in them
                exception_formatter=structlog.dev.plain_traceback,
            )
        )
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(
        handlers=[_ToStructlog()], level=max(threshold, logging.WARNING), force=True
    )


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
