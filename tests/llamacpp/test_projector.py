"""A projector's pieces, run through the model by hand, against mtmd's own evaluation."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from edged.errors import InvalidRequest
from edged.protocol import Media
from edged.store.projector import KEPT_BYTES
from edged.worker.engine import BadModelError
from edged.worker.llamacpp import multimodal
from edged.worker.llamacpp.multimodal import Piece
from edged.worker.llamacpp.runner import Decoded, Runner
from edged.worker.llamacpp.sound import to_mono
from tests.llamacpp import media
from tests.llamacpp.support import EDGE_GUIDE, needs_llama_cpp
from tests.models import projector
from tests.models.projector import PROJECTORS, Projector

pytestmark = needs_llama_cpp

BEFORE, AFTER = "Look at this: ", " What is it, and why?"


def by_hand(runner: Runner, one: Media) -> tuple[int, np.ndarray]:
    """Decode text, pieces and text as sequence 0; return positions and the last logits."""
    assert runner.projector
    at = 0

    def text(tokens: list[int]) -> None:
        nonlocal at
        assert runner.decode([(0, at, tokens, True)]) is Decoded.DONE
        at += len(tokens)

    text(runner.vocab.tokenize([(BEFORE, True)], wrap=False))
    for piece in runner.projector.read(one):
        if isinstance(piece, list):
            text(piece)
            continue
        (vectors,) = runner.projector.encode([piece])
        done = runner.decode_vectors(0, piece.positions(at, 0, piece.n), vectors, whole=piece.whole)
        assert done is Decoded.DONE
        at += piece.n_positions
    text(runner.vocab.tokenize([(AFTER, True)], wrap=False))
    return at, runner.rows()[0].copy()


@pytest.mark.parametrize("kind", PROJECTORS)
def test_by_hand_is_as_by_mtmd(kind: Projector) -> None:
    with media.opened(media.seeing(kind)) as runner:
        one = media.some(kind)
        expected = media.Mtmd(runner)
        n_expected = expected.read(BEFORE + media.MARKER + AFTER, one)
        row = expected.row()
        runner.cut(0, 0)
        n, found = by_hand(runner, one)
        assert n == n_expected
        np.testing.assert_allclose(found, row, atol=1e-4)
        runner.cut(0, 0)
        _, other = by_hand(runner, media.some(kind, seed=2))
        assert abs(other - row).max() > 0.05, "the model sees it"


@pytest.mark.parametrize(
    ("kind", "runs"),
    [("image", [16]), ("image-tiles", [16] * 3), ("image-whole", [16]), ("image-mrope", [24])],
)
def test_pieces_of_an_image(kind: Projector, runs: list[int]) -> None:
    with media.opened(media.seeing(kind)) as runner:
        assert runner.projector
        pieces = [p for p in runner.projector.read(media.picture()) if isinstance(p, Piece)]
        assert [piece.n for piece in pieces] == runs
        assert len({piece.key for piece in pieces}) == len(pieces)
        assert all(piece.whole is (kind == "image-whole") for piece in pieces)
        (last,) = pieces[-1:]
        if kind == "image-mrope":  # 4 rows of 6
            assert last.layout is not None
            assert last.n_positions == 6
            assert last.layout[0].tolist() == [0] * 24
            assert last.layout[1].tolist() == [row for row in range(4) for _ in range(6)]
            assert last.layout[2].tolist() == [*range(6)] * 4
        else:
            assert (last.layout, last.n_positions) == (None, last.n)


def test_equal_content_is_encoded_once() -> None:
    with media.opened(media.seeing("image")) as runner:
        assert runner.projector
        for seed in (1, 1, 2, 1):
            pieces = [p for p in runner.projector.read(media.picture(seed)) if isinstance(p, Piece)]
            runner.projector.encode(pieces)
        assert runner.projector.n_encoded == 2


def test_plan_counts_what_is_kept() -> None:
    assert multimodal._KEPT_BYTES == KEPT_BYTES


def test_kept_vectors_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multimodal, "_KEPT_BYTES", 2 * 16 * 64 * 4)  # two images
    with media.opened(media.seeing("image")) as runner:
        assert runner.projector
        for seed in (1, 2, 3, 3, 2, 1):
            pieces = [p for p in runner.projector.read(media.picture(seed)) if isinstance(p, Piece)]
            runner.projector.encode(pieces)
        assert runner.projector.n_encoded == 4
        assert len(runner.projector._kept) == 2


def test_nobody_left_to_wait_stops_the_encoding() -> None:
    with media.opened(media.seeing("image-tiles")) as runner:
        assert runner.projector
        pieces = [p for p in runner.projector.read(media.picture()) if isinstance(p, Piece)]
        left = iter([True, False])
        assert len(runner.projector.encode(pieces, lambda: next(left))) == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (200, 1), (7, 1400), (2048, 2048)])
@pytest.mark.parametrize("kind", media.IMAGES)
def test_image_of_any_size_is_read(kind: Projector, size: tuple[int, int]) -> None:
    with media.opened(media.seeing(kind)) as runner:
        assert runner.projector
        one = media.picture(1, *size)
        pieces = [p for p in runner.projector.read(one) if isinstance(p, Piece)]
        assert pieces
        vectors = runner.projector.encode(pieces[:1])[0]
        assert vectors.shape[0] == pieces[0].n
        assert np.isfinite(vectors).all()


def test_other_medium_is_refused() -> None:
    with media.opened(media.seeing("image")) as runner:
        assert runner.projector
        with pytest.raises(InvalidRequest, match="takes image, not audio"):
            runner.projector.read(media.noise())


@pytest.mark.parametrize(
    ("text", "mmproj"),
    [("image", "edge-guide"), ("image", "missing"), ("edge-guide", "image")],
)
def test_projector_that_does_not_fit_is_refused(text: str, mmproj: str) -> None:
    """No projector at all, no file, and one of another width."""
    launched = media.seeing("image")
    assert launched.llamacpp
    files = {"edge-guide": str(EDGE_GUIDE), "missing": "/nowhere", "image": str(projector("image"))}
    settings = msgspec.structs.replace(launched.llamacpp, mmproj=files[mmproj])
    if text == "edge-guide":
        launched = msgspec.structs.replace(launched, path=str(EDGE_GUIDE))
    launched = msgspec.structs.replace(launched, llamacpp=settings)
    with pytest.raises(BadModelError, match="projector"):
        Runner(launched, frozenset(), lambda _: True)


# ── sounds ──


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_samples_of_every_width_become_the_same_sound(width: int) -> None:
    wave = np.sin(np.arange(1600) / 20) * 0.5
    if width == 1:
        data = (wave * 127 + 128).astype(np.uint8).tobytes()
    else:
        whole = (wave * (2**31 - 1)).astype("<i4").view(np.uint8).reshape(-1, 4)
        data = whole[:, 4 - width :].tobytes()
    sound = Media("audio", data, rate=16000, channels=1, sample_bytes=width)
    np.testing.assert_allclose(to_mono(sound, 16000), wave, atol=0.02)


def test_channels_are_mixed() -> None:
    both = np.stack([np.full(100, 8192), np.full(100, -4096)], axis=1).astype("<i2")
    sound = Media("audio", both.tobytes(), rate=16000, channels=2, sample_bytes=2)
    np.testing.assert_allclose(to_mono(sound, 16000), np.full(100, 0.0625), atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_tone_keeps_its_pitch_at_another_rate(rate: int) -> None:
    tone = (np.sin(2 * np.pi * 440 * np.arange(rate) / rate) * 16000).astype("<i2")
    sound = Media("audio", tone.tobytes(), rate=rate, channels=1, sample_bytes=2)
    found = to_mono(sound, 16000)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000) * 16000 / 32768
    assert len(found) == 16000
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_what_the_new_rate_cannot_hold_is_left_out() -> None:
    tone = (np.sin(2 * np.pi * 12000 * np.arange(48000) / 48000) * 16000).astype("<i2")
    sound = Media("audio", tone.tobytes(), rate=48000, channels=1, sample_bytes=2)
    assert abs(to_mono(sound, 16000)).max() < 1e-3
