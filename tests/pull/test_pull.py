"""Sources against a hub on loopback: what they mean, how they arrive, what is refused."""

from __future__ import annotations

import errno
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from edged import plan
from edged.config import Source
from edged.errors import StoreError, Unreachable
from edged.store import download, lock, verify
from edged.store.source import resolve
from tests.hub import Hub
from tests.pull.support import REPOSITORY, Told, box, configuration, pull, sha256, weights

TOKEN = "hf_secret"  # noqa: S105 - of the hub on loopback


def refusal(*arguments: Any, **keys: Any) -> str:
    with pytest.raises(StoreError) as caught:
        pull(*arguments, **keys)
    return caught.value.message


def store(folder: Path) -> list[str]:
    """Return the files of the store but lock files."""
    root = folder / "store"
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and ".locks" not in path.parts
    )


def test_a_line_is_all_that_a_user_writes(hub: Hub, tmp_path: Path) -> None:
    content = weights()
    hub.add(REPOSITORY, {"Model-Q4_K_M.gguf": content, "Model-Q8_0.gguf": weights("Q8_0")})
    loaded = configuration(tmp_path, f"hf:{REPOSITORY}:Q4_K_M")
    before = plan.make(loaded, box()).models["m"]
    assert before.is_fetching
    assert before.refusal is None
    told = Told()
    entry = pull(loaded, tell=told)
    assert entry.revision == "a" * 40
    assert entry.chosen == "Q4_K_M"
    assert entry.licence == "apache-2.0"
    after = plan.make(loaded, box()).models["m"]
    assert after.launch
    assert Path(after.launch.path).read_bytes() == content
    assert not after.missing
    assert told.all[-1].done_bytes == told.all[-1].total_bytes == len(content)
    assert len(hub.bodies()) == 1
    assert not any("range" in request.headers for request in hub.bodies())


def test_restart_needs_no_network(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {"Model-Q4_K_M.gguf": weights()})
    pull(configuration(tmp_path, f"hf:{REPOSITORY}:Q4_K_M"))
    hub.requests.clear()
    hub.repositories.clear()
    again = configuration(tmp_path, f"hf:{REPOSITORY}:Q4_K_M", store="offline = true")
    assert plan.make(again, box()).models["m"].launch
    assert not hub.requests


def test_offline_refuses_without_touching_the_network(hub: Hub, tmp_path: Path) -> None:
    loaded = configuration(tmp_path, f"hf:{REPOSITORY}:Q4_K_M", store="offline = true")
    refused = plan.make(loaded, box()).models["m"]
    assert refused.refusal
    assert "edged is offline" in refused.refusal
    assert "edged import" in refusal(loaded)
    assert not hub.requests


def test_missing_and_shortened_files_are_to_be_fetched_again(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {"Model-Q4_K_M.gguf": weights()})
    loaded = configuration(tmp_path, f"hf:{REPOSITORY}:Q4_K_M")
    path = tmp_path / "store" / pull(loaded).files[0].path
    path.write_bytes(path.read_bytes()[:-1])
    assert plan.make(loaded, box()).models["m"].is_fetching
    pull(loaded)
    assert path.read_bytes() == weights()
    path.unlink()
    assert plan.make(loaded, box()).models["m"].is_fetching


# ── what a source means ──


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("", "Model-Q4_K_M.gguf"),
        (":q8_0", "Model-Q8_0.gguf"),
        (":Model-Q6_K.gguf", "Model-Q6_K.gguf"),
        (":UD-Q2_K_XL", "UD-Q2_K_XL/Model-UD-Q2_K_XL-00001-of-00002.gguf"),
    ],
)
def test_choice(hub: Hub, tmp_path: Path, choice: str, expected: str) -> None:
    names = ["Model-Q4_K_M.gguf", "Model-Q8_0.gguf", "Model-Q6_K.gguf", "Model-F16.gguf"]
    names += [f"UD-Q2_K_XL/Model-UD-Q2_K_XL-0000{n}-of-00002.gguf" for n in (1, 2)]
    files = {name: weights(name, 8) for name in names}
    hub.add(REPOSITORY, {**files, "README.md": b"x", "imatrix.gguf": b"x"})
    entry = pull(configuration(tmp_path, f"hf:{REPOSITORY}{choice}"))
    assert entry.files[0].path.endswith(f"/{'a' * 12}/{expected}")
    assert len(entry.of_role("model")) == (2 if "UD-" in choice else 1)


def test_no_such_tag_lists_those_that_exist(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {f"Model-{tag}.gguf": weights(tag, 8) for tag in ("Q4_K_M", "IQ2_XXS")})
    message = refusal(configuration(tmp_path, f"hf:{REPOSITORY}:Q5_K_M"))
    assert message == f"{REPOSITORY} has no Q5_K_M; it has IQ2_XXS, Q4_K_M"


def test_a_repository_without_gguf_says_so(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {"model.safetensors": b"x"})
    assert "has no GGUF files" in refusal(configuration(tmp_path, f"hf:{REPOSITORY}"))


def test_revision_is_pinned(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {"M-Q4_K_M.gguf": weights()}, branches=("main", "v1"))
    assert pull(configuration(tmp_path, f"hf:{REPOSITORY}@v1")).revision == "a" * 40
    assert pull(configuration(tmp_path, f"hf:{REPOSITORY}@{'a' * 40}")).revision == "a" * 40
    message = refusal(configuration(tmp_path, f"hf:{REPOSITORY}:Q4_K_M@v2"))
    assert f"{REPOSITORY} has no revision 'v2'" in message


def test_projector_and_licence_come_along(hub: Hub, tmp_path: Path) -> None:
    files = {f"mmproj-Model-{tag}.gguf": weights(tag, 8) for tag in ("F32", "F16", "Q8_0")}
    hub.add(REPOSITORY, {"Model-Q4_K_M.gguf": weights(), "LICENSE": b"terms", **files})
    entry = pull(configuration(tmp_path, f"hf:{REPOSITORY}"))
    assert [Path(f.path).name for f in entry.of_role("mmproj")] == ["mmproj-Model-F16.gguf"]
    assert [Path(f.path).name for f in entry.of_role("licence")] == ["LICENSE"]


def test_unusable_projector_beside_is_no_reason_to_refuse(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {"Model-Q4_K_M.gguf": weights(), "mmproj-F16.gguf": weights("x", 8)})
    loaded = configuration(tmp_path, f"hf:{REPOSITORY}")
    pull(loaded)
    made = plan.make(loaded, box()).models["m"]
    assert made.launch
    assert any("mmproj-F16.gguf, which lies beside it, holds no" in r for r in made.reasons)


def test_split_model_is_one_model(hub: Hub, tmp_path: Path) -> None:
    def part(n: int) -> bytes:
        from tests.unit.gguf_bytes import MODEL, TENSORS, gguf  # noqa: PLC0415

        split = {"split.no": n, "split.count": 2, "split.tensors.count": 3}
        return gguf({**(MODEL if n == 0 else {}), **split}, TENSORS[:1] if n == 0 else TENSORS[1:])

    files = {f"M-Q4_K_M-0000{n + 1}-of-00002.gguf": part(n) for n in (0, 1)}
    hub.add(REPOSITORY, files)
    loaded = configuration(tmp_path, f"hf:{REPOSITORY}", "context = 256")
    entry = pull(loaded)
    made = plan.make(loaded, box()).models["m"]
    assert made.refusal is None
    assert made.launch
    assert made.launch.path.endswith("-00001-of-00002.gguf")
    assert made.memory
    assert made.memory.weights_bytes == 64 * (4 + 32 + 32) * 4
    (tmp_path / "store" / entry.files[1].path).unlink()
    assert plan.make(loaded, box()).models["m"].is_fetching


def test_modelscope(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {"Model-Q4_K_M.gguf": weights()}, revision="b" * 40)
    entry = pull(configuration(tmp_path, f"ms:{REPOSITORY}:Q4_K_M"))
    assert entry.files[0].sha256 == sha256(weights())
    assert entry.files[0].path == f"ms/{REPOSITORY}/{'b' * 12}/Model-Q4_K_M.gguf"
    message = refusal(configuration(tmp_path, "ms:Org/None"))
    assert "no repository Org/None" in message


def test_safetensors_are_a_folder(hub: Hub, tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    good = len(header).to_bytes(8, "little") + header + bytes(8)
    files = {"model.safetensors": good, "config.json": b"{}", "pytorch_model.bin": b"evil"}
    hub.add(REPOSITORY, files)
    more = f'safetensors = "hf:{REPOSITORY}"'
    loaded = configuration(tmp_path, f"hf:{REPOSITORY}", more)
    entry = pull(loaded, form="safetensors")
    assert {Path(f.path).name for f in entry.files} == {"model.safetensors", "config.json"}
    folder = resolve(Source("hf", REPOSITORY), tmp_path, "safetensors", store=tmp_path / "store")
    assert (folder / "config.json").read_bytes() == b"{}"
    hub.add(REPOSITORY, files | {"model.safetensors": good[:-1]}, revision="c" * 40)
    assert "is truncated" in refusal(loaded, form="safetensors")


def test_ten_thousand_files_resolve_in_bounded_memory(hub: Hub, tmp_path: Path) -> None:
    files = {f"data/part-{n:05}/noise.bin": b"x" for n in range(10_000)}
    hub.add(REPOSITORY, {**files, "zz/Model-Q4_K_M.gguf": weights()})
    tracemalloc.start()
    try:
        entry = pull(configuration(tmp_path, f"hf:{REPOSITORY}"))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert entry.files[0].path.endswith("zz/Model-Q4_K_M.gguf")
    assert len([r for r in hub.requests if "/tree/" in r.path]) == 11
    # the server lives in this process too: a page of its JSON, and the list of names
    assert peak < 24 << 20


# ── who may read it ──


def test_gated_repository_says_what_to_do(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {"M-Q4_K_M.gguf": weights()}, gated=True, token=TOKEN)
    message = refusal(configuration(tmp_path, f"hf:{REPOSITORY}"))
    assert f"is gated: accept its terms at {hub.url}/{REPOSITORY}" in message
    assert "hf_token" in message
    wrong = tmp_path / "wrong"
    wrong.write_text("hf_other\n")
    message = refusal(
        configuration(tmp_path, f"hf:{REPOSITORY}", store=f'hf_token = "file:{wrong}"')
    )
    assert "this token may not read it" in message
    assert "hf_other" not in message


@pytest.mark.parametrize("where", ["file", "env", "HF_TOKEN", "HF_TOKEN_PATH"])
def test_token(hub: Hub, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add(REPOSITORY, {"M-Q4_K_M.gguf": weights()}, gated=True, token=TOKEN)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    settings = {
        "file": f'hf_token = "file:{tmp_path}/token"',
        "env": 'hf_token = "env:MY_TOKEN"',
    }
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    if where.startswith("HF"):
        monkeypatch.setenv(where, f"{tmp_path}/token" if "PATH" in where else TOKEN)
    loaded = configuration(tmp_path, f"hf:{REPOSITORY}", store=settings.get(where, ""))
    assert pull(loaded).bytes == len(weights())
    assert TOKEN not in (tmp_path / "store" / lock.NAME).read_text()
    assert all("authorization" not in request.headers for request in hub.bodies())


def test_unknown_repository(hub: Hub, tmp_path: Path) -> None:
    assert "has no repository Org/None" in refusal(configuration(tmp_path, "hf:Org/None"))
    assert not hub.repositories


# ── how bytes arrive ──


def test_cut_connections_cost_nothing_twice(hub: Hub, tmp_path: Path) -> None:
    content = weights(kib=512)
    hub.add(REPOSITORY, {"M-Q4_K_M.gguf": content})
    hub.cuts = [100_000, 200_000, 20_000]
    waits: list[float] = []
    entry = pull(configuration(tmp_path, f"hf:{REPOSITORY}"), waits=waits)
    assert entry.files[0].sha256 == sha256(content)
    starts = [request.headers.get("range") for request in hub.bodies()]
    assert starts[0] is None
    assert len(starts) == 4
    assert sum(request.sent for request in hub.bodies()) <= len(content) + 3 * (1 << 16)
    assert waits == [1.0, 1.0, 1.0]  # each time something had arrived


def test_a_server_without_ranges_begins_anew(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {"M-Q4_K_M.gguf": weights(kib=256)})
    hub.cuts, hub.ranges = [100_000], False
    assert pull(configuration(tmp_path, f"hf:{REPOSITORY}")).files[0].sha256


def test_busy_server_is_waited_for_as_long_as_it_asks(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {"M-Q4_K_M.gguf": weights()})
    hub.busy, hub.retry_after = 2, "7"
    waits: list[float] = []
    pull(configuration(tmp_path, f"hf:{REPOSITORY}"), waits=waits)
    assert waits == [7, 7]


def test_a_server_that_stays_broken_is_given_up(hub: Hub, tmp_path: Path) -> None:
    hub.broken = 1000
    waits: list[float] = []
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1 answers 500"):
        pull(configuration(tmp_path, f"hf:{REPOSITORY}"), waits=waits)
    assert waits == [1, 2, 4, 8, 16]


def test_corrupted_bytes_never_become_a_model(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {"M-Q4_K_M.gguf": weights()})
    hub.flip = {"M-Q4_K_M.gguf": 1}
    loaded = configuration(tmp_path, f"hf:{REPOSITORY}")
    assert "arrived damaged: its SHA-256 is" in refusal(loaded)
    assert store(tmp_path) == []
    assert pull(loaded).files[0].sha256 == sha256(weights())


def test_a_damaged_first_half_is_fetched_again_at_once(hub: Hub, tmp_path: Path) -> None:
    content = weights(kib=256)
    hub.add(REPOSITORY, {"M-Q4_K_M.gguf": content})
    loaded = configuration(tmp_path, f"hf:{REPOSITORY}")
    part = interrupted(hub, tmp_path, loaded)
    damaged = bytearray(part.read_bytes())
    damaged[1000] ^= 1
    part.write_bytes(damaged)
    assert pull(loaded).files[0].sha256 == sha256(content)


def test_a_right_digest_of_what_is_no_gguf(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {"M-Q4_K_M.gguf": b"<html>please log in</html>"})
    message = refusal(configuration(tmp_path, f"hf:{REPOSITORY}"))
    assert message.startswith("M-Q4_K_M.gguf is not a GGUF file")
    assert store(tmp_path) == []


def interrupted(hub: Hub, tmp_path: Path, loaded: Any) -> Path:
    """Leave a part behind, as a pull does that is given up; return its path."""
    hub.cuts = [100_000]
    hub.ranges = True
    broken = hub.repositories[REPOSITORY]

    def vanish(_: float) -> None:
        hub.repositories.clear()

    from edged.pull.auto import picker  # noqa: PLC0415
    from edged.pull.pulling import Pull  # noqa: PLC0415

    with Pull(loaded, picker(loaded, box), lambda _: None, vanish) as pulling:
        source = loaded.models["m"].gguf
        with pytest.raises(StoreError):
            pulling.fetch(pulling.resolve(source, "m"))
    hub.repositories[REPOSITORY] = broken
    hub.requests.clear()
    (found,) = (tmp_path / "store").rglob("*.part")
    assert found.stat().st_size > 50_000
    return found


def test_resumes_in_a_later_process(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {"M-Q4_K_M.gguf": weights(kib=256)})
    loaded = configuration(tmp_path, f"hf:{REPOSITORY}")
    had = interrupted(hub, tmp_path, loaded).stat().st_size
    assert pull(loaded).files[0].sha256 == sha256(weights(kib=256))
    assert [request.headers["range"] for request in hub.bodies()] == [f"bytes={had}-"]
    assert len(store(tmp_path)) == 2  # the model and the lock


def test_after_a_power_loss_only_synced_bytes_count(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_SYNC_BYTES", 40_000)
    hub.add(REPOSITORY, {"M-Q4_K_M.gguf": weights(kib=256)})
    loaded = configuration(tmp_path, f"hf:{REPOSITORY}")
    part = interrupted(hub, tmp_path, loaded)
    size = part.stat().st_size
    part.write_bytes(part.read_bytes()[:50_000] + bytes(size - 50_000))  # zeros, as it happens
    note = part.with_name(part.name + ".json")
    said = json.loads(note.read_text())
    assert 40_000 <= said["synced"] <= size
    note.write_text(json.dumps(said | {"boot": "another", "synced": 50_000}))
    assert pull(loaded).files[0].sha256 == sha256(weights(kib=256))
    assert [request.headers["range"] for request in hub.bodies()] == ["bytes=50000-"]


def test_a_part_of_something_else_is_not_used(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {"M-Q4_K_M.gguf": weights(kib=256)})
    loaded = configuration(tmp_path, f"hf:{REPOSITORY}")
    interrupted(hub, tmp_path, loaded)
    hub.add(REPOSITORY, {"M-Q4_K_M.gguf": weights("other", kib=256)})
    assert pull(loaded).files[0].sha256 == sha256(weights("other", kib=256))
    assert "range" not in hub.bodies()[0].headers


# ── the disk ──


def test_room_is_checked_before_a_byte(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPOSITORY, {"M-Q4_K_M.gguf": weights(kib=1024)})
    monkeypatch.setattr(verify, "free_bytes", lambda _: 64 << 20)
    message = refusal(configuration(tmp_path, f"hf:{REPOSITORY}"))
    assert "needs 1 MiB more on the disk, and 64 MiB are free" in message
    assert "edged gc" in message
    assert not hub.bodies()
    monkeypatch.setattr(verify, "free_bytes", lambda _: 66 << 20)
    assert pull(configuration(tmp_path, f"hf:{REPOSITORY}"))


def test_full_disk_leaves_the_old_state(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add(REPOSITORY, {"M-Q4_K_M.gguf": weights(), "M-Q8_0.gguf": weights("Q8_0", 256)})
    good = configuration(tmp_path, f"hf:{REPOSITORY}")
    pull(good)
    before = (tmp_path / "store" / lock.NAME).read_bytes()
    more = configuration(tmp_path, f"hf:{REPOSITORY}:Q8_0")
    fsync = os.fsync

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "is full; what has arrived stays" in refusal(more)
    monkeypatch.setattr(os, "fsync", fsync)
    assert (tmp_path / "store" / lock.NAME).read_bytes() == before
    assert plan.make(good, box()).models["m"].launch
    assert plan.make(more, box()).models["m"].is_fetching
    hub.requests.clear()
    pull(more)
    assert plan.make(more, box()).models["m"].launch


def test_damaged_lock_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / lock.NAME).write_text("{")
    with pytest.raises(StoreError, match=r"is damaged .*edged pull"):
        lock.read(tmp_path)


def test_damaged_lock_is_no_trouble_of_models_that_need_none(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / lock.NAME).write_text("{")
    (tmp_path / "own.gguf").write_bytes(weights())
    assert plan.make(configuration(tmp_path, "file:own.gguf"), box()).models["m"].launch
    refused = plan.make(configuration(tmp_path, "hf:Org/Model"), box()).models["m"].refusal
    assert refused
    assert "is damaged" in refused


def test_a_new_revision_links_what_has_not_changed(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {"M-Q4_K_M.gguf": weights()})
    loaded = configuration(tmp_path, f"hf:{REPOSITORY}")
    old = tmp_path / "store" / pull(loaded).files[0].path
    hub.requests.clear()
    hub.repositories[REPOSITORY].revision = "d" * 40
    new = tmp_path / "store" / pull(loaded).files[0].path
    assert new != old
    assert new.samefile(old)
    assert not hub.bodies()


# ── the speed limit, on a clock of its own ──


def test_rate_lets_so_many_bytes_through() -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    rate = download.Rate(1000, lambda: now[0], sleep)
    for _ in range(50):
        rate.passed(100)
    assert now[0] == pytest.approx(5, abs=1.1)
    now[0] += 100  # a pause allows no burst beyond a second's worth
    began = now[0]
    for _ in range(50):
        rate.passed(100)
    assert now[0] - began == pytest.approx(4, abs=1.1)
