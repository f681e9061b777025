"""The store of responses on real files: limits, owners, damage, locks, a full disk."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from edged import config, errors
from edged.store.ageing import Moment
from edged.store.folders import cache, state
from edged.store.responses import Limits, Responses, Row

DAY_S = 86400.0


class Clock:
    """The clocks of a box: `now_s` really passes, the wall clock may be `wrong_by_s`."""

    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0
        self.wrong_by_s = 0.0
        self._booted_s, self._boots = self.now_s - 60, 1

    def __call__(self) -> Moment:
        up_s = self.now_s - self._booted_s
        return Moment(self.now_s + self.wrong_by_s, up_s, f"boot {self._boots}")

    def boot(self) -> None:
        self._booted_s, self._boots = self.now_s, self._boots + 1


class Kept:
    """The limits in force, changeable as by a reload."""

    def __init__(self) -> None:
        self.limits = Limits(keep_s=30 * DAY_S, max_bytes=1 << 20)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "responses.db"


@pytest.fixture
async def store(path: Path, clock: Clock, kept: Kept) -> AsyncIterator[Responses]:
    store = Responses(path, lambda: kept.limits, clock)
    yield store
    await store.close()


def row(name: str, *, owner: str = "", previous: str | None = None, **more: Any) -> Row:
    facts = {"status": "completed", "body": name.encode(), "input": b"[]"} | more
    return Row(id=name, owner=owner, previous_id=previous, **facts)


async def names(store: Responses, *wanted: str) -> set[str]:
    return {name for name in wanted if await store.get(name, "") is not None}


async def test_row_comes_back_as_it_was_also_after_a_restart(path: Path, kept: Kept) -> None:
    written = row("a", previous="z", events=b"e", body=b'{"\xc3\xa4":1}', input=b"[1]")
    first = Responses(path, lambda: kept.limits)
    assert await first.put(written)
    await first.close()
    second = Responses(path, lambda: kept.limits)
    assert await second.get("a", "") == written
    await second.close()


async def test_file_is_made_with_the_first_use_and_is_for_nobody_else(
    store: Responses, path: Path
) -> None:
    await store.tidy()
    assert not path.parent.exists()
    assert await store.put(row("a"))
    made = list(path.parent.iterdir())
    assert {each.name for each in made} == {"responses.db", "responses.db-wal", "responses.db-shm"}
    assert {each.stat().st_mode & 0o777 for each in made} == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_owner_sees_only_his_own(store: Responses) -> None:
    assert await store.put(row("a", owner="one", item_ids=("msg_1",)))
    assert await store.put(row("b", owner="one", previous="a"))
    assert await store.put(row("c", owner="two", previous="a"))
    assert await store.get("a", "two") is None
    assert await store.item("msg_1", "two") is None
    assert not await store.delete("a", "two")
    found = await store.item("msg_1", "one")
    assert found is not None
    assert found.id == "a"
    assert [each.id for each in await store.chain("b", "one", 1 << 20)] == ["a", "b"]
    with pytest.raises(errors.PreviousResponseNotFound):
        await store.chain("b", "two", 1 << 20)
    with pytest.raises(errors.PreviousResponseNotFound, match="began before"):
        await store.chain("c", "two", 1 << 20)


async def test_chain_without_its_beginning_cannot_be_gone_on_with(store: Responses) -> None:
    for name, previous in (("a", None), ("b", "a"), ("c", "b")):
        assert await store.put(row(name, previous=previous))
    assert [each.id for each in await store.chain("c", "", 1 << 20)] == ["a", "b", "c"]
    assert await store.delete("a", "")
    with pytest.raises(errors.PreviousResponseNotFound, match="'a'"):
        await store.chain("c", "", 1 << 20)


async def test_conversation_that_has_grown_too_long_is_not_read(store: Responses) -> None:
    assert await store.put(row("a", body=b"x" * 600, events=b"e" * 5000))
    assert await store.put(row("b", body=b"x" * 600, previous="a"))
    assert len(await store.chain("b", "", 1300)) == 2
    with pytest.raises(errors.BodyTooLarge, match="1,100"):
        await store.chain("b", "", 1100)


async def test_replaced_row_counts_once_and_finds_its_items(store: Responses) -> None:
    big = b"x" * 40_000
    for _ in range(50):  # 2 MB in all, 1 MiB allowed
        assert await store.put(row("a", body=big, item_ids=("fc_1",)))
    assert await names(store, "a") == {"a"}
    assert await store.item("fc_1", "") is not None
    assert await store.put(row("b", body=big))
    assert await names(store, "a", "b") == {"a", "b"}


async def test_old_rows_go_while_used_conversations_stay(store: Responses, clock: Clock) -> None:
    for name, previous in (("a", None), ("b", "a"), ("lonely", None)):
        assert await store.put(row(name, previous=previous, item_ids=(f"msg_{name}",)))
    clock.now_s += 20 * DAY_S
    await store.chain("b", "", 1 << 20)
    clock.now_s += 20 * DAY_S
    await store.tidy()
    assert await names(store, "a", "b", "lonely") == {"a", "b"}
    assert await store.item("msg_lonely", "") is None
    clock.now_s += 31 * DAY_S
    assert await store.put(row("new"))
    assert await names(store, "a", "b", "new") == {"new"}


@pytest.mark.parametrize("jump_s", [365 * DAY_S, -365 * DAY_S], ids=["forward", "back"])
async def test_wall_clock_that_is_set_ages_nothing(
    store: Responses, clock: Clock, jump_s: float
) -> None:
    """Neither in one life of the daemon, nor over its restart, nor over the box's."""
    assert await store.put(row("a"))
    clock.wrong_by_s = jump_s
    await store.tidy()
    clock.now_s += DAY_S
    assert await store.put(row("b"))
    await store.close()
    clock.now_s += DAY_S
    await store.tidy()
    assert await names(store, "a", "b") == {"a", "b"}
    await store.close()
    clock.boot()
    clock.now_s += DAY_S
    await store.tidy()
    assert await names(store, "a", "b") == {"a", "b"}
    clock.now_s += 27.5 * DAY_S
    await store.tidy()
    assert await names(store, "a", "b") == {"b"}


async def test_clock_that_is_set_right_after_a_boot_ages_nothing(
    store: Responses, clock: Clock
) -> None:
    """A box without a battery: it boots in the past, the network tells the time later."""
    assert await store.put(row("a"))
    await store.close()
    clock.boot()
    clock.wrong_by_s = -900 * DAY_S
    assert await store.put(row("b"))
    clock.wrong_by_s = 0.0
    clock.now_s += DAY_S
    await store.tidy()
    await store.close()
    clock.now_s += DAY_S
    await store.tidy()
    assert await names(store, "a", "b") == {"a", "b"}


async def test_time_in_which_the_box_was_off_counts(store: Responses, clock: Clock) -> None:
    assert await store.put(row("a"))
    await store.close()
    clock.now_s += 31 * DAY_S
    clock.boot()
    await store.tidy()
    assert await names(store, "a") == set()


async def test_file_of_a_daemon_that_kept_no_clock_goes_by_the_wall(
    store: Responses, clock: Clock, path: Path
) -> None:
    assert await store.put(row("a"))
    await store.close()
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE clock")
    db.close()
    clock.now_s += 29 * DAY_S
    await store.tidy()
    assert await names(store, "a") == {"a"}
    clock.now_s += 2 * DAY_S
    await store.tidy()
    assert await names(store, "a") == set()


async def test_shorter_limit_takes_effect_with_the_next_look(
    store: Responses, clock: Clock, kept: Kept
) -> None:
    assert await store.put(row("a"))
    clock.now_s += 2 * DAY_S
    kept.limits = Limits(DAY_S, 1 << 20)
    assert await store.put(row("b"))
    assert await names(store, "a", "b") == {"b"}


async def test_longest_unused_rows_make_room(store: Responses, clock: Clock, path: Path) -> None:
    for i in range(100):
        clock.now_s += 1
        assert await store.put(row(f"r{i}", body=b"x" * 50_000))
    left = await names(store, *(f"r{i}" for i in range(100)))
    assert 3 <= len(left) <= 20  # of 50 kB each, 1 MiB in all; a look removes 16 at a time
    assert left == {f"r{i}" for i in range(100 - len(left), 100)}
    size = sum(each.stat().st_size for each in path.parent.iterdir())
    assert size < 8 << 20


async def test_deleted_text_is_in_no_file(store: Responses, path: Path) -> None:
    secret = b"what nobody else should read" * 50
    assert await store.put(row("a", body=secret))
    assert any(secret[:28] in each.read_bytes() for each in path.parent.iterdir())
    assert await store.delete("a", "")
    assert not any(secret[:28] in each.read_bytes() for each in path.parent.iterdir())


async def test_unfinished_rows_are_lost_with_the_daemon(path: Path, kept: Kept) -> None:
    first = Responses(path, lambda: kept.limits)
    for status in ("queued", "in_progress", "completed", "failed"):
        assert await first.put(row(status, status=status))
    await first.close()  # as a crash would leave it
    second = Responses(path, lambda: kept.limits)
    found = {}
    for name in ("queued", "in_progress", "completed", "failed"):
        again = await second.get(name, "")
        assert again is not None
        found[name] = again.status
    assert found == {
        "queued": "lost",
        "in_progress": "lost",
        "completed": "completed",
        "failed": "failed",
    }
    await second.close()


def _other_version(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE responses (id TEXT)")
        db.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"no database at all, but long enough to look at" * 100),
        lambda path: path.write_bytes(path.read_bytes()[:100] + b"\xff" * 20_000),
        _other_version,
    ],
    ids=["text", "damaged pages", "other version"],
)
async def test_damaged_file_is_put_aside(
    path: Path, kept: Kept, spoil: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first = Responses(path, lambda: kept.limits)
    if spoil is not _other_version:
        for i in range(20):
            assert await first.put(row(f"r{i}", body=b"x" * 4000))
        await first.close()
    else:
        path.parent.mkdir()
    spoil(path)
    second = Responses(path, lambda: kept.limits)
    assert await second.put(row("a"))
    assert await names(second, "a", "r3") == {"a"}
    assert len(list(path.parent.glob("responses.db.damaged-*[0-9]"))) == 1
    assert "responses.damaged" in capsys.readouterr().out
    await second.close()


def _spoil_pages(path: Path) -> None:
    damaged = bytearray(path.read_bytes())
    damaged[8192:-4096] = b"\x55" * len(damaged[8192:-4096])  # the head is whole
    path.write_bytes(damaged)


async def test_damage_that_shows_late_is_put_aside_too(store: Responses, path: Path) -> None:
    for i in range(200):
        assert await store.put(row(f"r{i}", body=b"x" * 4000))
    await store.close()
    _spoil_pages(path)
    for i in range(200):
        await store.get(f"r{i}", "")
    assert await store.put(row("after"))
    assert await names(store, "after") == {"after"}
    assert list(path.parent.glob("responses.db.damaged-*"))


async def test_locked_file_costs_the_row_not_the_answer(
    path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edged.store.responses._BUSY_S", 0.05)
    store = Responses(path, lambda: kept.limits)
    assert await store.put(row("a"))
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    assert not await store.put(row("b"))
    assert "responses.not_stored" in capsys.readouterr().out
    assert await names(store, "a", "b") == {"a"}  # readers go on
    with pytest.raises(errors.ServiceUnavailable, match="locked"):
        await store.delete("a", "")
    holder.execute("ROLLBACK")
    holder.close()
    assert await store.put(row("b"))
    assert await names(store, "a", "b") == {"a", "b"}
    await store.close()


async def test_full_disk_costs_the_row_not_the_answer(
    store: Responses, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await store.put(row("a"))
    assert store._db is not None
    await asyncio.get_running_loop().run_in_executor(  # SQLite's own way to say: full
        store._thread(), store._db.execute, "PRAGMA max_page_count = 1"
    )
    assert not await store.put(row("b", body=b"x" * 100_000))
    assert "disk is full" in capsys.readouterr().out
    assert await names(store, "a", "b") == {"a"}


async def test_folder_that_cannot_be_made_costs_the_row_not_the_answer(
    tmp_path: Path, kept: Kept
) -> None:
    (tmp_path / "state").write_text("in the way")
    store = Responses(tmp_path / "state" / "responses.db", lambda: kept.limits)
    assert not await store.put(row("a"))
    with pytest.raises(errors.ServiceUnavailable):
        await store.get("a", "")
    await store.close()


async def test_loop_does_not_wait_for_the_disk(store: Responses) -> None:
    assert await store.put(row("a"))
    block = threading.Event()
    store._thread().submit(block.wait, 60)
    pending = asyncio.ensure_future(store.get("a", ""))
    await asyncio.sleep(0.05)  # the loop still turns
    assert not pending.done()
    block.set()
    assert await pending is not None


async def test_closed_store_opens_again(store: Responses) -> None:
    assert await store.put(row("a"))
    await store.close()
    assert await names(store, "a") == {"a"}


def test_state_folder_is_systemds_else_the_users(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state({"STATE_DIRECTORY": "/var/lib/edged:/other", "XDG_STATE_HOME": "/x"}) == Path(
        "/var/lib/edged"
    )
    assert state({"XDG_STATE_HOME": "/x"}) == Path("/x/edged")
    assert state({"XDG_STATE_HOME": "x"}) == tmp_path / ".local/state/edged"
    assert state({}) == tmp_path / ".local/state/edged"
    assert cache({"CACHE_DIRECTORY": "/var/cache/edged"}) == Path("/var/cache/edged")
    assert cache({"XDG_CACHE_HOME": "/x"}) == Path("/x/edged")
    assert cache({"STATE_DIRECTORY": "/s", "XDG_STATE_HOME": "/x"}) == tmp_path / ".cache/edged"


def _server(lines: str) -> config.Server:
    return config.parse(f"[server]\n{lines}\n".encode(), Path("models.toml")).server


def test_limits_are_read_from_models_toml() -> None:
    usual = _server("")
    assert (usual.responses_keep_s, usual.responses_max_bytes) == (30 * DAY_S, 256 << 20)
    said = _server('responses_keep = "12h"\nresponses_max = "1GiB"')
    assert (said.responses_keep_s, said.responses_max_bytes) == (DAY_S / 2, 1 << 30)
    none = _server('responses_keep = "0"\nresponses_max = "0"')
    assert Limits(none.responses_keep_s, 1).keeps_nothing
    assert Limits(1, none.responses_max_bytes).keeps_nothing


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('responses_keep = "never"', 'or "0"'),
        ("responses_keep = 0", 'or "0"'),
        ('responses_max = "1KiB"', "from 1 MiB to 1 TiB"),
        ('responses_max = "1GB"', 'did you mean "1GiB"?'),
    ],
)
def test_limit_that_is_none_is_a_problem(line: str, expected: str) -> None:
    with pytest.raises(config.ConfigProblems, match=re.escape(expected)):
        _server(line)
