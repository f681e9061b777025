"""A model's folder without weights, and an engine that has loaded it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.lmdeploy.contract import tiny_model
from tests.lmdeploy.contract.box import Box


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
async def box(folder: Path) -> AsyncIterator[Box]:
    made = Box(folder)
    ready = await made.engine.load(made.launch, lambda _: None)
    assert ready.build == "lmdeploy 0.18.0 turbomind"
    assert ready.chat_template
    yield made
    await made.idle()
    await made.engine.close()
