"""Saved prefixes on a real disk: budgets, damage, foreign files, a full disk, two workers."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.protocol import PrefixCache
from edged.worker.llamacpp import saved as module
from edged.worker.llamacpp import saved_file
from edged.worker.llamacpp.file_digest import file_digest
from edged.worker.llamacpp.saved import (
    DiskError,
    File,
    SavedPrefixes,
    forget_all,
    key_of,
    leavers,
)
from edged.worker.llamacpp.sequence import Sequence, Span

KEY = key_of("a model", "a build")
MIB = 1 << 20


def computed(
    tokens: list[int], *, group: str = "", spans: tuple[Span, ...] = (), uses: int = 1
) -> Sequence:
    """Return a resident that holds all of these tokens."""
    sequence = Sequence(list(tokens), context=len(tokens) + 1, group=group, spans=spans)
    sequence.n_computed = len(tokens)
    sequence.uses = uses
    return sequence


def asked(tokens: list[int], group: str = "", spans: tuple[Span, ...] = ()) -> Sequence:
    return Sequence(list(tokens), context=len(tokens) + 1, group=group, spans=spans)


class Shelf:
    """A folder and those who use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(
        self,
        model: str = "m",
        key: str = KEY,
        *,
        budget: int = MIB,
        total: int = 1 << 40,
        cuttable: bool = True,
    ) -> SavedPrefixes:
        return SavedPrefixes(
            PrefixCache(budget, total, str(self.folder)), model, key, cuttable=cuttable
        )

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("**/*.kv"))

    def everything(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("**/*") if path.is_file())


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "prefixes")


def put(saved: SavedPrefixes, sequence: Sequence, state: bytes = b"state" * 20) -> bool:
    def fill(room: memoryview) -> bool:
        room[:] = state
        return True

    return saved.write(sequence, len(state), fill) is not None


_clock = itertools.count(1_700_000_000)


def age(path: Path) -> None:
    """Let a file be younger than all that were given an age before."""
    now = next(_clock)
    os.utime(path, (now, now))


# ── what comes back ──


def test_state_comes_back_with_tokens_group_spans_and_uses(shelf: Shelf) -> None:
    place = (1 << 128 | 77) << 32
    tokens = [1, 2, *range(place, place + 4), 3, 4]
    spans = (Span(2, 4, 2, whole=True),)
    assert put(shelf.open(), computed(tokens, group="g", spans=spans, uses=5), b"\1\2\3")
    again = shelf.open()
    found, n = again.best(asked([*tokens, 9], "g", spans))
    assert found is not None
    assert n == 8
    assert (found.tokens, found.group, found.spans, found.uses) == (tokens, "g", spans, 5)
    state = saved_file.read(found)
    assert state is not None
    assert bytes(state) == b"\1\2\3"


def test_longest_match_wins_and_the_last_token_is_left(shelf: Shelf) -> None:
    saved = shelf.open()
    for tokens in ([1, 2, 3, 9], [1, 2, 4, 5, 6]):
        assert put(saved, computed(tokens))
    assert saved.best(asked([1, 2, 4, 5, 7]))[1] == 4
    assert saved.best(asked([1, 2, 4]))[1] == 2
    assert saved.best(asked([2])) == (None, 0)
    assert saved.best(asked([1, 2, 4, 5, 7], "other group")) == (None, 0)


def test_uncuttable_state_is_of_use_at_its_very_end_only(shelf: Shelf) -> None:
    saved = shelf.open(cuttable=False)
    assert put(saved, computed([1, 2]))
    assert put(saved, computed([1, 2, 3, 4]))
    assert len(saved) == 2
    assert saved.best(asked([1, 2, 3, 4, 5]))[1] == 4
    assert saved.best(asked([1, 2, 3, 4]))[1] == 2
    assert saved.best(asked([1, 2, 3, 9]))[1] == 2
    assert saved.best(asked([1, 2])) == (None, 0)


def test_middle_of_an_image_is_no_place_to_share_at(shelf: Shelf) -> None:
    tokens, spans = [1, 2, 1000, 1001, 1002, 3], (Span(2, 3, 3, whole=False),)
    saved = shelf.open()
    assert put(saved, computed(tokens, spans=spans))
    other = [1, 2, 1000, 1001, 2000, 3]
    assert saved.best(asked(other, spans=spans))[1] == 2


def test_continuation_takes_the_place_of_what_it_continues(shelf: Shelf) -> None:
    saved = shelf.open()
    assert put(saved, computed([1, 2, 3]))
    assert put(saved, computed([1, 2, 3], group="g"))
    assert put(saved, computed([1, 2, 3, 4]))
    assert len(shelf.files()) == len(saved) == 2
    assert saved.holder_of(computed([1, 2])) is not None
    assert saved.holder_of(computed([1, 2, 3, 4, 5])) is None
    assert saved.holder_of(computed([1, 2], group="h")) is None


def test_same_prefix_written_again_is_one_file(shelf: Shelf) -> None:
    saved = shelf.open()
    assert put(saved, computed([1, 2, 3]), b"old")
    assert put(saved, computed([1, 2, 3]), b"new")
    found, _ = saved.best(asked([1, 2, 3, 4]))
    assert found is not None
    state = saved_file.read(found)
    assert state is not None
    assert bytes(state) == b"new"
    assert len(saved) == len(shelf.files()) == 1


def test_nobody_else_can_read_it(shelf: Shelf) -> None:
    old = os.umask(0)
    try:
        assert put(shelf.open(), computed([1, 2, 3]))
    finally:
        os.umask(old)
    (file,) = shelf.files()
    assert file.stat().st_mode & 0o777 == 0o600
    for folder in (file.parent, file.parent.parent, shelf.folder):
        assert folder.stat().st_mode & 0o777 == 0o700


# ── damage ──


def test_file_torn_anywhere_is_removed(shelf: Shelf) -> None:
    assert put(shelf.open(), computed([1, 2, 3]), random.Random(1).randbytes(300))
    (file,) = shelf.files()
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert len(shelf.open()) == 0
        assert not file.exists()
    file.write_bytes(whole + b"\0")
    assert len(shelf.open()) == 0
    file.write_bytes(whole)
    assert len(shelf.open()) == 1


def test_every_wrong_byte_is_found(shelf: Shelf) -> None:
    assert put(shelf.open(), computed([1, 2, 3]), random.Random(1).randbytes(300))
    (file,) = shelf.files()
    whole = file.read_bytes()
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x20]) + whole[at + 1 :])
        found, _ = shelf.open().best(asked([1, 2, 3, 4]))
        assert found is None or saved_file.read(found) is None
        in_state = at >= len(whole) - 300
        assert (found is not None) == in_state == file.exists()


def test_file_that_shrinks_or_goes_after_the_index_was_made(shelf: Shelf) -> None:
    saved = shelf.open()
    assert put(saved, computed([1, 2, 3]))
    (file,) = shelf.files()
    found, _ = saved.best(asked([1, 2, 3, 4]))
    assert found is not None
    file.write_bytes(file.read_bytes()[:-1])
    assert saved_file.read(found) is None
    file.unlink()
    assert saved_file.read(found) is None
    saved.remove(found)
    assert len(saved) == 0


@settings(deadline=None)
@given(junk=st.binary(max_size=200))
def test_junk_is_no_prefix(junk: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    shelf = Shelf(tmp_path_factory.mktemp("junk"))
    assert put(shelf.open(), computed([1]))
    (file,) = shelf.files()
    file.write_bytes(junk)
    assert len(shelf.open()) == 0
    file.write_bytes(b"edgedKV\1" + junk)
    assert len(shelf.open()) == 0


def test_file_of_another_key_is_foreign_and_removed(shelf: Shelf) -> None:
    assert put(shelf.open(), computed([1, 2, 3]))
    (file,) = shelf.files()
    other = shelf.open(key=key_of("another model"))
    assert len(other) == 0
    assert file.exists(), "it is another model's, or may be again"
    moved = file.parent.with_name(key_of("another model")) / file.name
    moved.parent.mkdir()
    moved.write_bytes(file.read_bytes())
    assert len(shelf.open(key=key_of("another model"))) == 0
    assert not moved.exists()


def test_link_is_not_followed(shelf: Shelf, tmp_path: Path) -> None:
    assert put(shelf.open(), computed([1, 2, 3]))
    (file,) = shelf.files()
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    assert len(shelf.open()) == 0
    assert elsewhere.exists()


def test_what_a_killed_writer_left_is_cleared(shelf: Shelf) -> None:
    assert put(shelf.open(), computed([1, 2, 3]))
    (file,) = shelf.files()
    dead = file.with_name(f".{file.name}.{2**22 + 1}.tmp")  # above every process id
    alive = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    for path in (dead, alive):
        path.write_bytes(b"half")
    shelf.open()
    assert shelf.everything() == sorted([file, alive])


# ── budgets ──


def test_longest_unused_leaves_first(shelf: Shelf) -> None:
    for i in range(3):
        assert put(shelf.open(), computed([i, 1]), b"." * (MIB // 4))
    for file in shelf.files():
        age(file)
    saved = shelf.open()
    found, _ = saved.best(asked([0, 1, 2]))
    assert found is not None
    saved.used(found)
    assert put(saved, computed([9, 1]), b"." * (MIB // 2 - 1000))
    assert saved.best(asked([0, 1, 2]))[0] is found
    assert len(saved) == len(shelf.files()) == 3
    assert sum(f.stat().st_size for f in shelf.files()) <= MIB + 3000


def test_what_was_written_now_does_not_leave_for_colder_ones(shelf: Shelf) -> None:
    saved = shelf.open()
    assert put(saved, computed([1, 1]), b"." * (MIB - 1000))
    assert not put(saved, computed([2, 1]), b"." * 10_000)
    assert put(saved, computed([1, 1, 1]), b"." * (MIB - 1000)), "it contains the first one"
    assert len(shelf.files()) == 1


def test_prefix_above_the_budget_costs_no_other_its_place(shelf: Shelf) -> None:
    saved = shelf.open()
    assert put(saved, computed([1, 1]))
    assert not put(saved, computed([2, 1]), b"." * MIB)
    assert len(saved) == len(shelf.files()) == 1


def test_models_share_the_total(shelf: Shelf) -> None:
    for i, name in enumerate(("a", "b", "a/b", "ä")):
        assert put(shelf.open(name, total=2 * MIB), computed([i]), b"." * (MIB - 1000))
        age(shelf.files()[-1])
    assert len(shelf.files()) == 2
    assert sum(f.stat().st_size for f in shelf.files()) <= 2 * MIB
    assert len(shelf.open("ä")) == 1


def test_smaller_budget_holds_from_the_next_load(shelf: Shelf) -> None:
    saved = shelf.open()
    for i in range(4):
        assert put(saved, computed([i]), b"." * 1000)
    assert len(shelf.open(budget=2500)) == 2
    assert len(shelf.open(total=1500)) == 1
    forget_all(PrefixCache(0, 0, str(shelf.folder)), "m")
    assert shelf.files() == []


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), max_size=8),
    kept=st.sets(st.integers(0, 7)),
    wanted=st.integers(0, 12),
    budget=st.integers(0, 30),
)
def test_leavers_are_the_oldest_and_just_enough(
    sizes: list[int], kept: set[int], wanted: int, budget: int
) -> None:
    files = [File(Path(str(i)), size, float(i)) for i, size in enumerate(sizes)]
    keep = {Path(str(i)) for i in kept}
    leaving = leavers(files, wanted, budget, keep)
    free = [file for file in files if file.path not in keep]
    if leaving is None:
        assert sum(f.n_bytes for f in files if f.path in keep) + wanted > budget
        return
    assert leaving == [file.path for file in free[: len(leaving)]]
    left = sum(file.n_bytes for file in files if file.path not in leaving)
    assert left + wanted <= budget
    assert not leaving or left + wanted + free[len(leaving) - 1].n_bytes > budget


# ── the disk ──


@contextmanager
def small_files() -> Iterator[None]:
    """Not for longer than the call: pytest's own output may go to a file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_disk_that_takes_no_more_leaves_nothing_behind(shelf: Shelf) -> None:
    saved = shelf.open()
    assert put(saved, computed([1]))
    with small_files(), pytest.raises(DiskError):
        put(saved, computed([2]), b"." * 10_000)
    assert len(shelf.everything()) == len(saved) == 1


def test_last_part_of_the_disk_is_left_to_others(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = shelf.open()
    assert put(saved, computed([1]))
    monkeypatch.setattr(module, "_FREE_SHARE", 1.0)
    with pytest.raises(DiskError, match="of the disk"):
        put(saved, computed([2]))
    assert len(shelf.everything()) == 1


def test_state_that_is_not_given_leaves_no_file(shelf: Shelf) -> None:
    saved = shelf.open()
    assert saved.write(computed([1]), 100, lambda _: False) is None
    assert shelf.everything() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_a_disk_error(shelf: Shelf) -> None:
    shelf.folder.mkdir(mode=0o500)
    saved = shelf.open()
    with pytest.raises(DiskError, match="ermission"):
        put(saved, computed([1]))


def test_file_in_the_way_of_the_folder_is_a_disk_error(shelf: Shelf) -> None:
    shelf.folder.write_text("")
    saved = shelf.open()
    assert saved.best(asked([1, 2])) == (None, 0)
    with pytest.raises(DiskError):
        put(saved, computed([1]))


def _write_many(folder: Path, first: int) -> None:
    saved = Shelf(folder).open(budget=20_000)
    for i in range(first, first + 60):
        put(saved, computed([i % 40, i]), bytes([i % 256]) * 1000)
        saved._kept.clear()


def test_two_workers_share_a_folder(shelf: Shelf) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_write_many, args=(shelf.folder, i)) for i in (0, 30)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    saved = shelf.open(budget=20_000)
    assert len(shelf.everything()) == len(saved) > 0
    for path in shelf.files():
        found = saved_file.read_header(path, KEY)
        assert found is not None
        state = saved_file.read(found)
        assert state is not None
        assert set(bytes(state)) == {found.tokens[1] % 256}


# ── the model's digest ──


def test_digest_is_of_the_content(tmp_path: Path) -> None:
    content = bytearray(random.Random(7).randbytes(100_000))
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    one.write_bytes(content)
    two.write_bytes(content)
    assert file_digest(one) == file_digest(two)
    age(two)
    assert file_digest(one) == file_digest(two)
    content[50_000] ^= 1
    two.write_bytes(content)
    assert file_digest(one) != file_digest(two)
    two.write_bytes(content[:-1])
    assert file_digest(one) != file_digest(two)


def test_digest_of_a_large_file_sees_every_mebibyte_and_the_end(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    with path.open("wb") as file:
        file.truncate(40 << 20)
    before = file_digest(path)
    for at in (0, (16 << 20) - 1, 17 << 20, (39 << 20) + 100, (40 << 20) - 1):
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"x")
        after = file_digest(path)
        assert after != before
        before = after


def test_digest_of_a_split_file_is_of_all_parts(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    for part in parts:
        part.write_bytes(b"part")
    before = file_digest(parts[0])
    parts[1].write_bytes(b"paRt")
    assert file_digest(parts[0]) != before
