"""Keys and TLS of a whole daemon: files that change while it serves, and their commands."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx

from edged import auth
from edged.daemon import certificates
from tests.daemon.appliance import PATIENCE_S, Appliance, appliance, closing, free_port

KEYED = 'auth = "keys"\n'


def edged(box: Appliance, *arguments: str, code: int = 0) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "edged", *arguments, "--config", str(box.config)],
        env=os.environ | {"STATE_DIRECTORY": str(box.folder / "state")},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert ran.returncode == code, ran.stderr
    return ran.stdout + ran.stderr


def made(box: Appliance, *arguments: str) -> str:
    return str(json.loads(edged(box, "key", *arguments, "--json"))["key"])


async def until_status(box: Appliance, key: str, wanted: int) -> None:
    headers = {"authorization": f"Bearer {key}"}
    end = time.monotonic() + PATIENCE_S
    while (await box.client.get("/v1/models", headers=headers)).status_code != wanted:
        assert time.monotonic() < end, box.log
        await asyncio.sleep(0.05)


async def test_keys_come_and_go_while_it_serves_also_when_models_toml_is_broken(
    tmp_path: Path,
) -> None:
    async with appliance(tmp_path) as box:
        box.save(box.toml().replace("[server]\n", "[server]\n" + KEYED))
        await until_status(box, "x", 401)
        first = made(box, "add", "first")
        await until_status(box, first, 200)
        assert (tmp_path / "keys.toml").stat().st_mode & 0o777 == 0o640
        edged(box, "key", "add", "first", code=1)
        second = made(box, "rotate", "first", "--keep-old", "1h")
        await until_status(box, second, 200)
        await until_status(box, first, 200)
        box.save("broken")
        await box.until_logged("config.rejected")
        edged(box, "key", "revoke", "first")
        await until_status(box, second, 401)
        for secret in (first, second):
            assert secret not in box.log + (tmp_path / "keys.toml").read_text()
        (tmp_path / "keys.toml").write_text("[keys.")
        await box.until_logged("keys.rejected")


async def test_beyond_loopback_without_keys_does_not_start_and_says_what_to_do(
    tmp_path: Path,
) -> None:
    box = Appliance(tmp_path)
    box.write(listen=f'"0.0.0.0:{box.port}"]\nannounce = false\nhosts = [')
    assert "edged key add NAME" in edged(box, "check", code=78)
    await box.start()
    async with closing(box):
        assert await box.exit() == 78
        assert "edged key add NAME" in box.log
        made(box, "add", "one")
        edged(box, "check")
        await box.start()
        await box.until_logged("daemon.serving")


async def test_socket_that_systemd_holds_beyond_loopback_wants_keys_too(tmp_path: Path) -> None:
    """models.toml says loopback, and means it; edged.socket says otherwise."""
    with socket.socket() as held:
        held.bind(("0.0.0.0", 0))
        held.listen(8)
        box = Appliance(tmp_path)
        box.port = held.getsockname()[1]
        await box.client.aclose()
        box.client = box.new_client()
        box.write(listen='"127.0.0.1:0"]\nannounce = false\nhosts = [')
        await box.start(listening=held)
        async with closing(box):
            assert await box.exit() == 78
            assert f"systemd holds 0.0.0.0:{box.port}" in box.log
            assert "edged key add NAME" in box.log
            only = made(box, "add", "one")
            await box.start(listening=held)
            await box.until_logged("daemon.serving")
            assert (await box.client.get("/health")).status_code == 200
            # the last key goes while it serves: nothing is opened to anybody, and it says so
            edged(box, "key", "revoke", "one")
            await box.until_logged("config.rejected")
            assert "systemd holds" in (await box.status())["config"]["problem"]
            assert only not in box.log


async def test_first_key_is_shown_once(tmp_path: Path) -> None:
    box = Appliance(tmp_path)
    box.write()
    edged(box, "key", "add", "admin", "--admin", "--first")
    edged(box, "key", "add", "admin", "--admin", "--first")
    assert (tmp_path / "first-key").stat().st_mode & 0o777 == 0o600
    secret = edged(box, "key", "show-first").strip()
    assert secret.startswith("sk-edged-")
    assert "rotate admin" in edged(box, "key", "show-first", code=1)
    listed = json.loads(edged(box, "key", "list", "--json"))
    assert [(each["name"], each["admin"]) for each in listed] == [("admin", True)]
    await box.client.aclose()


async def test_first_key_that_is_good_for_nothing_is_not_shown(tmp_path: Path) -> None:
    """It was rotated, or keys.toml is that of a backup."""
    box = Appliance(tmp_path)
    box.write()
    edged(box, "key", "add", "admin", "--admin", "--first")
    path = tmp_path / "keys.toml"
    assert auth.unseen(path)
    assert "nobody has seen the first key" in edged(box, "doctor", code=1)
    edged(box, "key", "rotate", "admin", "--keep-old", "1h")
    assert auth.unseen(path), "it is good for an hour more"
    edged(box, "key", "rotate", "admin")
    assert auth.unseen(path) is None
    assert "rotate admin" in edged(box, "key", "show-first", code=1)
    assert not (tmp_path / "first-key").exists()
    await box.client.aclose()


async def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    """One key with a fault would make the daemon refuse the file, and with it every key."""
    box = Appliance(tmp_path)
    box.write()
    edged(box, "key", "add", "anna", "--expires", "90d")
    before = (tmp_path / "keys.toml").read_text()
    for fault, said in (
        (["add", "b", "--models", "one\ntwo"], "nothing was changed"),
        (["add", "b", "--rpm", str(1 << 60)], "keys.b.rpm must be"),
        (["add", "b", "--expires", "99999999d"], "year 9999"),
        (["add", "b", "--expires", "2020-01-31"], "is past"),
        (["rotate", "anna", "--keep-old", "99999999d"], "year 9999"),
    ):
        assert said in edged(box, "key", *fault, code=1), fault
        assert (tmp_path / "keys.toml").read_text() == before
    past = before.replace(re.search(r"expires = (\S+)", before)[1], "2020-01-31T00:00:00Z")  # type: ignore[index]
    (tmp_path / "keys.toml").write_text(past)
    assert "--expires 90d" in edged(box, "key", "rotate", "anna", code=1), "it would be born dead"
    edged(box, "key", "rotate", "anna", "--expires", "90d")
    await box.client.aclose()


# ── TLS ──


def trusting(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / "state" / "tls" / "ca.crt"))


def shown(port: int, trust: ssl.SSLContext) -> bytes:
    """Return the certificate that a client is shown."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as plain,
        trust.wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        found = wrapped.getpeercert(binary_form=True)
        assert found
        return found


async def test_tls_of_its_own_ca_beside_http_and_renewed_without_restart(tmp_path: Path) -> None:
    port = free_port()
    box = Appliance(tmp_path)
    tls = f'[server.tls]\nmode = "self-signed"\nlisten = ["127.0.0.1:{port}"]\n'
    box.save(box.toml("m") + tls)
    await box.start()
    async with closing(box):
        await box.until_logged("daemon.serving")
        ca = (await box.client.get("/ca.crt")).content
        assert ca == (tmp_path / "state/tls/ca.crt").read_bytes()
        assert (tmp_path / "state/tls/ca.key").stat().st_mode & 0o777 == 0o600
        trust = trusting(tmp_path)
        async with httpx.AsyncClient(verify=trust, trust_env=False, timeout=PATIENCE_S) as client:
            for host in ("127.0.0.1", "localhost"):
                answer = await client.get(f"https://{host}:{port}/v1/models")
                assert answer.status_code == 200
        assert f"127.0.0.1:{port} (TLS)" in (await box.status())["listen"]
        before = await asyncio.to_thread(shown, port, trust)
        (tmp_path / "state/tls/leaf.crt").unlink()
        box.process.send_signal(1)  # SIGHUP: a reload looks at once
        end = time.monotonic() + PATIENCE_S
        while await asyncio.to_thread(shown, port, trust) == before:
            assert time.monotonic() < end, box.log
            await asyncio.sleep(0.05)
        facts = json.loads(edged(box, "tls", "show", "--json"))
        assert facts["names"][0] == "localhost"
        # what clients compare with what they got over plain HTTP
        der = ssl.PEM_cert_to_DER_cert(ca.decode())
        assert facts["ca_sha256"] == hashlib.sha256(der).hexdigest()
        assert facts["ca_sha256"] in edged(box, "tls", "show")
        # half of the box's own CA is nothing to go on with: what was loaded stays
        for name in ("ca.key", "leaf.crt"):
            (tmp_path / "state/tls" / name).unlink()
        box.process.send_signal(1)
        await box.until_logged("tls.kept")
        assert await asyncio.to_thread(shown, port, trust)


async def test_files_that_cannot_be_used_are_named_and_nothing_changes(tmp_path: Path) -> None:
    async with appliance(tmp_path, "m") as box:
        tls = '[server.tls]\nmode = "files"\ncert = "/nowhere/a.pem"\nkey = "/nowhere/b.pem"\n'
        box.save(box.toml("m") + tls + f'listen = ["127.0.0.1:{free_port()}"]\n')
        await box.until_logged("/nowhere/a.pem")
        assert (await box.status())["config"]["generation"] == 1


async def test_pair_that_does_not_fit_is_not_taken(tmp_path: Path) -> None:
    port = free_port()
    certificates.ensure(tmp_path, ("localhost",), time.time())
    tls = (
        f'[server.tls]\nmode = "files"\ncert = "{tmp_path}/leaf.crt"\nkey = "{tmp_path}/leaf.key"\n'
    )
    box = Appliance(tmp_path)
    box.save(box.toml("m") + tls + f'listen = ["127.0.0.1:{port}"]\n')
    await box.start()
    async with closing(box):
        await box.until_logged("daemon.serving")
        trust = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
        before = await asyncio.to_thread(shown, port, trust)
        (tmp_path / "leaf.key").write_bytes((tmp_path / "ca.key").read_bytes())
        box.process.send_signal(1)
        await box.until_logged("tls.kept")
        assert await asyncio.to_thread(shown, port, trust) == before


def test_own_leaf_whose_key_is_another_is_made_anew(tmp_path: Path) -> None:
    """As a power cut between the two files leaves them: no TLS until somebody deletes them."""
    now = time.time()
    certificates.ensure(tmp_path, ("localhost",), now)
    (tmp_path / "leaf.key").write_bytes((tmp_path / "ca.key").read_bytes())
    assert certificates.ensure(tmp_path, ("localhost",), now)
    ssl.create_default_context().load_cert_chain(tmp_path / "leaf.crt", tmp_path / "leaf.key")


def test_leaf_is_renewed_before_its_end_and_for_new_names(tmp_path: Path) -> None:
    now = time.time()
    assert certificates.ensure(tmp_path, ("localhost", "10.0.0.1"), now)
    ca = (tmp_path / "ca.crt").read_bytes()
    assert not certificates.ensure(tmp_path, ("localhost",), now + 50 * 86400)
    assert certificates.ensure(tmp_path, ("localhost", "10.0.0.2"), now)
    found = certificates.read(tmp_path / "leaf.crt")
    assert found.names == ("localhost", "10.0.0.2")
    assert 89 < (found.ends - now) / 86400 < 91
    assert certificates.ensure(tmp_path, ("localhost",), now + 65 * 86400)
    assert (tmp_path / "ca.crt").read_bytes() == ca
