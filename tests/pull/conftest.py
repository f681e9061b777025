from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hub import Hub, served


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Give a hub that plays Hugging Face and ModelScope."""
    with served() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("MODELSCOPE_DOMAIN", found.url)
        monkeypatch.setenv("HF_HOME", "/nonexistent")
        for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "MODELSCOPE_API_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(name, raising=False)
        yield found
