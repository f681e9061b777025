"""Where a rendered prompt has left the reasoning: open, closed, or not begun."""

from __future__ import annotations

from edged.worker.output.harmony import channel_of
from edged.worker.output.syntax import Format, Harmony

_ANALYSIS = "analysis"
_END = "<|end|>"
_TO_FINAL = f"{_END}<|start|>assistant<|channel|>final<|message|>"


def opened(form: Format, prompt: str) -> str | None:
    """Return what closes the reasoning that a prompt has opened at its end; None if it has not."""
    if isinstance(form.calls[0], Harmony):
        return _TO_FINAL if channel_of(prompt) == _ANALYSIS else None
    end = prompt.rstrip()
    found = next((m for m in form.markers if end.endswith(m.opening.strip())), None)
    return found.closing if found else None


def closing(form: Format, prompt: str, *, may_call: bool) -> str | None:
    """Return the text that ends the reasoning of an answer; None for a model that never reasons."""
    if isinstance(form.calls[0], Harmony):
        return _END if may_call else _TO_FINAL  # what comes next may be a call
    return opened(form, prompt) or (form.thinks.closing if form.thinks else None)


def closed(form: Format, prompt: str) -> bool:
    """Tell whether a prompt ends with reasoning that is over already."""
    end = prompt.rstrip()
    return any(end.endswith(marker.closing.strip()) for marker in form.markers)
