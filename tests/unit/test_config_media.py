"""`server.media_hosts` and `llamacpp.mmproj` in models.toml."""

from pathlib import Path

import pytest

from edged import config

MODEL = '[models.a]\ngguf = "file:/a.gguf"\n'


def parse(content: str) -> config.Config:
    return config.parse(content.encode(), Path("/etc/models.toml"))


def test_hosts_are_names_in_lower_case() -> None:
    found = parse('[server]\nmedia_hosts = ["Images.Example.org", "a.b-c.example"]\n')
    assert found.server.media_hosts == ("images.example.org", "a.b-c.example")
    assert parse("").server.media_hosts == ()


@pytest.mark.parametrize(
    "host",
    ["", "*", "*.example.org", "localhost", "10.0.0.1", "::1", "https://example.org", "a.b:443",
     "example.org/", "-a.example", "a..example", "exämple.org", "a" * 64 + ".example"],
)  # fmt: skip
def test_what_is_no_name_of_a_host_is_refused(host: str) -> None:
    with pytest.raises(config.ConfigProblems, match=r"media_hosts item 1 must be the name"):
        parse(f'[server]\nmedia_hosts = ["{host}"]\n')


def test_projector_is_a_source() -> None:
    found = parse(MODEL + '[models.a.llamacpp]\nmmproj = "file:mmproj.gguf"\n')
    assert str(found.models["a"].llamacpp.mmproj) == "file:mmproj.gguf"
    assert parse(MODEL).models["a"].llamacpp.mmproj is None


def test_projector_that_is_no_source_is_refused() -> None:
    with pytest.raises(config.ConfigProblems, match=r'did you mean "file:/m.gguf"'):
        parse(MODEL + '[models.a.llamacpp]\nmmproj = "/m.gguf"\n')
