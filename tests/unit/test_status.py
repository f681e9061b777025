"""What `/status` tells of a launch."""

from __future__ import annotations

import pytest
from msgspec import structs

from edged.protocol import Kind, Launch, LlamaCppLaunch
from edged.status import Settings

CHOSEN = LlamaCppLaunch(threads=3, threads_batch=4, kv_type="q8_0", batch=256)
LAUNCH = Launch("m", "llamacpp", "/m.gguf", "1", context=512, parallel=2, pool=1024)


def test_settings_are_those_of_the_launch() -> None:
    found = Settings.of(structs.replace(LAUNCH, llamacpp=CHOSEN))
    assert found is not None
    assert (found.threads, found.threads_batch, found.batch) == (3, 4, 256)
    assert (found.kv_type, found.flash_attention, found.pool) == ("q8_0", "auto", 1024)


def test_launch_without_llamacpp_has_none() -> None:
    assert Settings.of(None) is None
    assert Settings.of(LAUNCH) is None


@pytest.mark.parametrize(
    ("kind", "speculation", "draft", "told"),
    [
        ("chat", True, None, "n-gram"),
        ("chat", True, "/d.gguf", "draft"),
        ("chat", False, "/d.gguf", "off"),
        ("embeddings", True, None, "off"),
    ],
)
def test_settings_tell_how_tokens_are_guessed(
    kind: Kind, speculation: bool, draft: str | None, told: str
) -> None:
    chosen = structs.replace(CHOSEN, speculation=speculation, draft=draft)
    found = Settings.of(structs.replace(LAUNCH, kind=kind, llamacpp=chosen))
    assert found is not None
    assert found.speculation == told
