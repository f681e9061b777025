"""No secret in anything that edged says: every output of a box in use is searched for every key."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from edged import auth
from tests.daemon.appliance import PATIENCE_S, Appliance, appliance, needs_engine


def edged(box: Appliance, *arguments: str) -> str:
    """Run a command and return all that it prints, whether it succeeds or not."""
    ran = subprocess.run(
        [sys.executable, "-m", "edged", *arguments],
        env=os.environ
        | {
            "NO_COLOR": "1",
            "STATE_DIRECTORY": str(box.folder / "state"),
            "EDGED_ADMIN_SOCKET": str(box.admin_socket),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        cwd=box.folder,
    )
    return ran.stdout + ran.stderr


def made(box: Appliance, *arguments: str) -> str:
    return str(json.loads(edged(box, "key", *arguments, "--json"))["key"])


@needs_engine
@pytest.mark.timeout(300)  # some fifteen commands, one after the other
async def test_no_output_holds_a_key(tmp_path: Path) -> None:
    foreign, password = auth.new_secret(), "pass-4711-word"
    async with appliance(tmp_path, "a", env={"HF_TOKEN": "hf_" + "T" * 20}) as box:
        said: list[str] = []
        said.append(edged(box, "key", "add", "admin", "--admin", "--first"))
        first = (tmp_path / "first-key").read_text().strip()
        key = made(box, "add", "anna", "--rpm", "3")
        rotated = made(box, "rotate", "anna", "--keep-old", "1h")
        secrets = (key, rotated, first, foreign, password, "T" * 20)
        assert len(set(secrets)) == len(secrets)

        box.save(box.toml("a").replace("[server]\n", '[server]\nauth = "keys"\n'))
        await box.until_logged("config.applied")

        # right and wrong keys, in every place where people put them
        for secret in (key, rotated, first, foreign):
            answers = await asyncio.gather(
                *(
                    _asked(box, method, path, headers, secret)
                    for headers in _headers(secret)
                    for method, path in _requests(secret)
                )
            )
            # whoever sent it may read it in the answer; what others sent is nowhere
            assert not [each for each in secrets if each != secret and each in "".join(answers)]
            async with box.admin() as client:
                said += [(await client.get(path)).text for path in ("/status", "/metrics")]

        # a file with secrets where none belong: all problems come at once
        box.save(
            f'[server]\nauth = "{key}"\n'
            f'[store]\nhf_token = "hf_{"T" * 20}"\n'
            f'[models.x]\nupstream = "http://user:{password}@host/v1"\n'
            f'[models.y]\ngguf = "https://user:{password}@host/x.gguf"\n'
            f'[models.z]\ngguf = "{first}"\n'
        )
        await box.until_logged("config.rejected")
        problems = edged(box, "check")
        assert all(f"{place} " in problems for place in ("server.auth", "store.hf_token")), problems
        assert problems.count("must be") == 5, problems
        said += [problems, edged(box, "check", "--json"), edged(box, "reload")]
        async with box.admin() as client:
            said.append((await client.get("/status")).text)
        box.write("a")
        said.append(edged(box, "reload"))

        said += [
            edged(box, *command)
            for command in (
                ["key", "list"],
                ["key", "list", "--json"],
                ["doctor"],
                ["doctor", "--json"],
                ["status", "--json", "--url", f"unix:{box.admin_socket}"],
                ["models", "--json"],
                ["logs", "-n", "2000"],
                ["report", "-o", "bundle.tgz"],
            )
        ]
        with tarfile.open(tmp_path / "bundle.tgz") as bundle:
            for entry in bundle.getmembers():
                part = bundle.extractfile(entry)
                assert part
                said.append(part.read().decode())
        assert await box.stop() == 0
        said += [box.log, (tmp_path / "keys.toml").read_text()]
    everything = "\n".join(said)
    assert "request.done" in everything
    assert "key=anna" in everything, "its name is told"
    for secret in secrets:
        where = everything.find(secret)
        assert where < 0, everything[max(0, where - 300) : where + 100]


def _headers(secret: str) -> tuple[dict[str, str], ...]:
    bearer = {"authorization": f"Bearer {secret}"}
    return (
        bearer,
        {"x-api-key": secret},
        {"api-key": secret},
        {"authorization": f"Basic {secret}"},
        {**bearer, "x-request-id": secret},
        {**bearer, "host": f"{secret}.example.org"},
        {"origin": f"https://{secret}.example.org"},
    )


def _requests(secret: str) -> tuple[tuple[str, str], ...]:
    return (
        ("GET", "/v1/models"),
        ("GET", f"/v1/models?api_key={secret}"),
        ("GET", f"/{secret}/v1/models"),
        ("POST", "/v1/chat/completions"),
    )


async def _asked(
    box: Appliance, method: str, path: str, headers: dict[str, str], secret: str
) -> str:
    body = {"model": f"a-{secret}", "messages": [{"role": "user", "content": "x"}]}
    content = json.dumps(body).encode() if method == "POST" else b""
    answer = await box.client.request(
        method, path, headers={"content-type": "application/json", **headers}, content=content
    )
    return answer.text
