"""`https:` sources, on a server with a certificate of its own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edged import config
from edged.errors import StoreError
from tests.hub import Hub, served
from tests.pull.support import REPOSITORY, configuration, pull, sha256, weights


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the test's certificate, is not installed")
    both = tmp_path / "both.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", str(tmp_path / "key")),
            *("-addext", "subjectAltName=DNS:localhost", "-out", str(tmp_path / "cert")),
        ],
        check=True,
        capture_output=True,
    )
    both.write_text((tmp_path / "key").read_text() + (tmp_path / "cert").read_text())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))
    with served(both) as hub:
        hub.add(REPOSITORY, {"my-model.gguf": weights(kib=256)})
        yield hub


def address(web: Hub, digest: str = "") -> str:
    found = f"https://localhost:{web.port}/cdn/{REPOSITORY}/my-model.gguf"
    return f"{found}#sha256={digest}" if digest else found


def test_resumes_and_keeps_the_digest(web: Hub, tmp_path: Path) -> None:
    web.cuts = [0, 100_000]  # the first answer is only asked for its size
    entry = pull(configuration(tmp_path, address(web)))
    assert entry.files[0].sha256 == sha256(weights(kib=256))
    assert entry.files[0].path.startswith("https/localhost/")
    assert web.bodies()[-1].headers["if-range"]


def test_digest_in_the_line_is_held(web: Hub, tmp_path: Path) -> None:
    good = sha256(weights(kib=256))
    assert pull(configuration(tmp_path, address(web, good.upper()))).files[0].sha256 == good
    with pytest.raises(StoreError, match="arrived damaged"):
        pull(configuration(tmp_path, address(web, "0" * 64)))
    with pytest.raises(config.ConfigProblems, match="64 hexadecimal digits"):
        configuration(tmp_path, address(web, "abc"))


def test_content_that_changes_meanwhile_begins_anew(web: Hub, tmp_path: Path) -> None:
    new = weights("another", kib=256)
    loaded = configuration(tmp_path, address(web))

    class Changing(list[float]):
        def append(self, value: float) -> None:
            super().append(value)
            web.repositories[REPOSITORY].files["my-model.gguf"] = new

    web.cuts = [0, 100_000]
    # both have one length, so that only the etag can tell them apart
    assert len(new) == len(weights(kib=256))
    assert pull(loaded, waits=Changing()).files[0].sha256 == sha256(new)


def test_what_is_no_model_file_is_refused(web: Hub, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"does not end in \.gguf"):
        pull(configuration(tmp_path, f"https://localhost:{web.port}/x.zip"))
    with pytest.raises(StoreError, match="answers 404"):
        pull(configuration(tmp_path, f"https://localhost:{web.port}/x.gguf"))
