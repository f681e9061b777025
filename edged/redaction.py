"""What may be a key, a password or a private key, blacked out of a text."""

from __future__ import annotations

import re

# What is a secret by its own looks: never logged, never shown. The first group stays.
_BY_LOOKS = (
    re.compile(r"(\bsk-)[A-Za-z0-9_-]{16,}"),
    re.compile(r"(\bhf_)[A-Za-z0-9]{16,}"),
    re.compile(r"(://)[^/\s@\"']+(?=@)"),
    re.compile(r"(?i)([?&](?:[a-z_-]*token|key|sig|[a-z-]*signature)=)[^&#\s\"']+"),
    re.compile(r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?=-----END |\Z)", re.DOTALL),
)
# And by what stands before it: in files of people, where too much is better than too little.
_BY_NAME = (
    re.compile(r"(?i)(\b(?:bearer|basic) +)[^\s\"']+"),
    re.compile(r"(?i)((?:api_?key|token|secret|password)\"?\s*[=:]\s*\")[^\"]*"),
    re.compile(r"(?i)(sha256\s*=\s*\")[0-9a-f]{64}"),
)
_INSTEAD = r"\1…"


def without_secrets(text: str) -> str:
    """Return the text without what is a secret by its looks."""
    for pattern in _BY_LOOKS:
        text = pattern.sub(_INSTEAD, text)
    return text


def for_strangers(text: str) -> str:
    """Return the text of a file or a log as it may leave the box."""
    text = without_secrets(text)
    for pattern in _BY_NAME:
        text = pattern.sub(_INSTEAD, text)
    return text
