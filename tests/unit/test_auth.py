from __future__ import annotations

from pathlib import Path

import pytest

from edged import auth
from edged.auth import Key, Keyring
from edged.config import Listen, Server, Tls
from edged.errors import ConfigError


def key(secret: str, name: str = "one", **more: object) -> Key:
    return Key(name=name, sha256=auth.digest(secret), **more)  # type: ignore[arg-type]


def test_secret_is_new_and_long_every_time() -> None:
    made = {auth.new_secret() for _ in range(50)}
    assert len(made) == 50
    assert all(each.startswith("sk-edged-") and len(each) > 50 for each in made)


def test_keyring_finds_the_key_of_a_secret_only() -> None:
    ring = Keyring((key("a"), key("b", "two"), key("c", "three", old_sha256=auth.digest("z"))))
    assert ring.find("b", 0) == ring.keys[1]
    for wrong in ("", "A", "ab", "b ", "\udcff", auth.digest("b")):
        assert ring.find(wrong, 0) is None
    assert ring.find("z", 0) is None, "an old secret without an end is not good"


def test_old_secret_is_good_until_its_end() -> None:
    ring = Keyring((key("new", old_sha256=auth.digest("old"), old_until=100.0),))
    assert ring.find("old", 99.9) == ring.find("new", 99.9) == ring.keys[0]
    assert ring.find("old", 100.0) is None
    assert ring.find("new", 100.0) is not None


def test_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    ring = Keyring(
        (
            key("a", admin=True, created=1_800_000_000.0),
            key(
                "b",
                "t.w-o_2",
                models=("Qwen/x:y", 'quo"te\\', "ä"),
                rpm=60,
                tpm=1 << 30,
                parallel=2,
                networks=("192.168.0.0/16", "fd00::/8"),
                expires=1_900_000_000.0,
                old_sha256=auth.digest("c"),
                old_until=1_850_000_000.0,
            ),
            key("n", "none", models=()),
        )
    )
    path.write_text(auth.dump(ring))
    assert auth.load(path) == ring
    assert auth.load(tmp_path / "absent.toml") == Keyring()
    for secret in ("a", "b", "c"):
        assert f'"{secret}"' not in path.read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = [", "is not TOML"),
        ("[key.a]", "key is not a known table"),
        ("keys = 1", "keys must be tables"),
        ('[keys."a b"]\nsha256 = "0"', "name has letters"),
        ("[keys.a]", "has no sha256"),
        ('[keys.a]\nsha256 = "abc"', "64 hexadecimal"),
        ("[keys.a]\nrmp = 1", 'did you mean "rpm"?'),
        ("[keys.a]\nrpm = 0", "a whole number from 1"),
        ('[keys.a]\nnetworks = ["10.0.0.1/8"]', 'did you mean "10.0.0.0/8"?'),
        ('[keys.a]\nexpires = "soon"', "a time such as"),
    ],
)
def test_problem_of_the_file_is_named_with_its_path(
    tmp_path: Path, text: str, expected: str
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        auth.load(path)
    assert expected in caught.value.message
    assert caught.value.message.startswith(f"{path}: ")


def test_beyond_loopback_needs_keys_or_none() -> None:
    beyond = Server(listen=(Listen("tcp", "0.0.0.0", 8000),))
    tls = Server(tls=Tls(mode="self-signed"))
    path = Path("/etc/edged/keys.toml")
    for server in (beyond, tls):
        with pytest.raises(ConfigError, match="edged key add NAME"):
            auth.check_reach(server, Keyring(), path)
        auth.check_reach(server, Keyring((key("a"),)), path)
    held = (Listen("tcp", "127.0.0.1", 8000), Listen("tcp", "::", 8000))
    with pytest.raises(ConfigError, match=r"systemd holds \[::\]:8000 .*edged key add NAME"):
        auth.check_reach(Server(), Keyring(), path, held)
    auth.check_reach(Server(), Keyring((key("a"),)), path, held)
    auth.check_reach(Server(auth="none"), Keyring(), path, held)
    auth.check_reach(Server(), Keyring(), path, held[:1])
    auth.check_reach(Server(), Keyring(), path)
    auth.check_reach(Server(listen=beyond.listen, auth="none"), Keyring(), path)
