"""The bytes of a WAV file → PCM, with Python's own `wave`. Runs in a thread.

Only the head is read here: the samples go to the worker as they are, as plain numbers.
"""

from __future__ import annotations

import io
import wave

from edged.api.media import Unreadable
from edged.protocol import Media

MOST_S = 600
_RATES = (4000, 192_000)  # Hz
_MOST_CHANNELS = 8


def decode(data: bytes, form: str) -> Media:
    """Return the sound in a WAV file; raises Unreadable for others and for broken ones."""
    if form != "wav" or data[:4] != b"RIFF":
        said = form if form != "wav" else "something else"
        raise Unreadable(f"must be a WAV file with PCM samples (`format`: `wav`), not {said[:40]}")
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate, n_frames = file.getparams()[:4]
            samples = file.readframes(min(n_frames, MOST_S * _RATES[1]))
    except (wave.Error, EOFError, ValueError, OverflowError, RuntimeError) as error:
        raise Unreadable(f"is no WAV file with PCM samples: {error}") from error
    if not _RATES[0] <= rate <= _RATES[1] or channels > _MOST_CHANNELS:
        raise Unreadable(
            f"has {rate} samples a second and {channels} channels; "
            f"{_RATES[0]} to {_RATES[1]} and up to {_MOST_CHANNELS} are taken"
        )
    n_whole = len(samples) // (channels * width)
    if not n_whole:
        raise Unreadable("is a WAV file without samples")
    if n_whole > MOST_S * rate:
        raise Unreadable(f"is {n_whole // rate} s long; at most {MOST_S} s are taken")
    return Media(
        "audio",
        samples[: n_whole * channels * width],
        rate=rate,
        channels=channels,
        sample_bytes=width,
    )
