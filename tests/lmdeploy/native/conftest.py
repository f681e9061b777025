"""An engine over the real native module; nothing behind that is real."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.lmdeploy.contract import tiny_model
from tests.lmdeploy.contract.box import Box
from tests.lmdeploy.native.computer import Computer


class NativeBox(Box):
    @staticmethod
    def make_native() -> Any:
        return Computer()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
async def box(folder: Path) -> AsyncIterator[Box]:
    made = NativeBox(folder)
    await made.engine.load(made.launch, lambda _: None)
    yield made
    await made.idle()
    await made.engine.close()
