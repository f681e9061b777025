"""Samples as a WAV file has them → what a projector takes: one channel at its own rate."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edged.protocol import Media

Samples = npt.NDArray[np.float32]


def to_mono(media: Media, rate: int) -> Samples:
    """Return the sound's channels mixed into one, -1 to 1, at `rate` Hz."""
    values = _numbers(media.data, media.sample_bytes)
    frames = values[: len(values) // media.channels * media.channels]
    mono: Samples = frames.reshape(-1, media.channels).mean(axis=1, dtype=np.float32)
    return _resampled(mono, media.rate, rate)


def _numbers(data: bytes, width: int) -> Samples:
    if width == 1:  # the only width without a sign
        values = np.frombuffer(data, np.uint8).astype(np.float32)
        return (values - np.float32(128)) / np.float32(128)
    if width == 3:  # noqa: PLR2004 - no such type: the upper three bytes of four
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8, len(wide) * 3).reshape(-1, 3)
        return wide.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)
    kind = {2: "<i2", 4: "<i4"}[width]
    return np.frombuffer(data, kind).astype(np.float32) / np.float32(2 ** (8 * width - 1))


def _resampled(samples: Samples, old: int, new: int) -> Samples:
    """Return the same sound at another rate: its spectrum, cut off or filled up with zeros."""
    n = max(1, round(len(samples) * new / old))
    if old == new or len(samples) < 2:  # noqa: PLR2004
        return samples
    spectrum = np.fft.rfft(samples)
    return (np.fft.irfft(spectrum[: n // 2 + 1], n) * (n / len(samples))).astype(np.float32)
