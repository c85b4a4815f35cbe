"""The small door to the disk: the real one and the one in memory keep the same promises."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from unittest import mock

import pytest

from jsonqueue.errors import DiskFull, FolderRefused, LockLost, StorageError, SyncFailed
from jsonqueue.storage.files import Files, RealFiles, read_around, write_all
from jsonqueue.storage.locks import hold
from jsonqueue.storage.log import LogKind, LogWriter
from jsonqueue.storage.memory import MemoryFiles


@pytest.fixture(params=["real", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Files]:
    if request.param == "memory":
        yield MemoryFiles()
        return
    real = RealFiles(tmp_path)
    yield real
    real.shut()


def content(files: Files, name: str) -> bytes:
    handle = files.open(name)
    try:
        return files.read(handle, 0, files.size(handle))
    finally:
        files.close(handle)


def make(files: Files, name: str, data: bytes = b"") -> None:
    handle = files.open(name, create=True)
    write_all(files, handle, 0, data)
    files.sync(handle)
    files.close(handle)


def test_writes_and_reads_go_anywhere(files: Files) -> None:
    """Over what is there, behind it, behind a truncation; reads beyond the end as well."""
    handle = files.open("a", create=True)
    assert files.write_at(handle, 0, b"hello") == 5
    assert write_all(files, handle, 5, b" world") == 11
    assert files.read(handle, 6, 99) == b"world"
    assert files.read(handle, 99, 1) == b""
    files.truncate(handle, 5)
    assert files.write_at(handle, 5, b"!") == 1
    files.sync(handle)
    assert files.size(handle) == 6
    assert files.write_at(handle, 1, b"a") == 1
    assert files.write_at(handle, 4, b"a, w") == 4
    files.close(handle)
    assert content(files, "a") == b"halla, w"
    handle = files.open("a")  # also what was not created through this handle
    assert write_all(files, handle, 0, b"H") == 1
    files.close(handle)
    assert content(files, "a") == b"Halla, w"


def test_create_never_opens_what_is_there(files: Files) -> None:
    """And open never creates."""
    make(files, "a", b"1")
    with pytest.raises(FileExistsError):
        files.open("a", create=True)
    with pytest.raises(FileNotFoundError):
        files.open("b")
    assert content(files, "a") == b"1"


def test_names_move_as_they_should(files: Files) -> None:
    """Rename replaces, link does not, unlink wants something to unlink."""
    files.make_folder("sub")
    files.make_folder("sub")
    make(files, "a", b"1")
    make(files, "b", b"2")
    files.link("a", "sub/a")
    with pytest.raises(FileExistsError):
        files.link("b", "sub/a")
    with pytest.raises(FileNotFoundError):
        files.link("none", "sub/b")
    files.rename("b", "a")
    assert (content(files, "a"), content(files, "sub/a")) == (b"2", b"1")
    with pytest.raises(FileNotFoundError):
        files.rename("b", "c")
    files.unlink("a")
    with pytest.raises(FileNotFoundError):
        files.unlink("a")
    files.sync_folder()
    files.sync_folder("sub")
    assert [name for name in files.list() if name != "sub"] == []
    assert files.list("sub") == ["a"]
    assert files.list("nowhere") == []


def test_identity_tells_files_apart(files: Files) -> None:
    """One that was replaced, or written to, is another."""
    make(files, "a", b"1")
    before = files.identity("a")
    assert files.identity("a") == before
    make(files, "b", b"1")
    files.rename("b", "a")
    assert files.identity("a") != before
    handle = files.open("a")
    before = files.identity("a")
    write_all(files, handle, 1, b"2")
    files.close(handle)
    assert files.identity("a") != before
    assert files.identity("none") is None
    assert files.free_bytes() > 0


def test_a_handle_outlives_its_name(files: Files) -> None:
    """Readers of a file that is replaced or unlinked read on."""
    make(files, "a", b"1")
    handle = files.open("a")
    files.unlink("a")
    assert files.read(handle, 0, 9) == b"1"
    files.close(handle)


# ── the real one ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RealFiles]:
    files = RealFiles(tmp_path)
    yield files
    files.shut()


def test_files_are_ours_alone(real: RealFiles) -> None:
    """0600, whatever the umask; folders 0700; and no child inherits a handle."""
    old = os.umask(0)
    try:
        handle = real.open("a", create=True)
        real.make_folder("sub")
    finally:
        os.umask(old)
    assert os.fstat(handle).st_mode & 0o777 == 0o600
    assert (real.root / "sub").stat().st_mode & 0o777 == 0o700
    assert not os.get_inheritable(handle)
    real.close(handle)


@pytest.mark.parametrize("plant", [lambda path: path.symlink_to("/etc/passwd"), os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused(real: RealFiles, plant: Callable[[Path], None]) -> None:
    """A link, a pipe or a folder where a file of ours belongs: nothing is followed, nothing hangs."""
    plant(real.root / "queue.json")
    with pytest.raises(StorageError):
        real.open("queue.json")


def test_a_pipe_with_a_reader_is_refused_too(real: RealFiles) -> None:
    """It opens; it is no regular file."""
    os.mkfifo(real.root / "a")
    reader = os.open(real.root / "a", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(FolderRefused, match="not a regular file"):
        real.open("a")
    os.close(reader)


def test_read_only_files_cannot_be_written(tmp_path: Path) -> None:
    """Looking at a queue must not be able to change it."""
    (tmp_path / "a").write_bytes(b"1")
    files = RealFiles(tmp_path, read_only=True)
    handle = files.open("a")
    assert files.read(handle, 0, 9) == b"1"
    with pytest.raises(StorageError):
        files.write_at(handle, 0, b"2")
    files.close(handle)
    files.shut()
    files.shut()


def _failing(number: int) -> Callable[..., int]:
    def fail(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_is_told_from_a_broken_disk(real: RealFiles, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The one may be tried again."""
    handle = real.open("a", create=True)
    monkeypatch.setattr(os, "pwrite", _failing(number))
    with pytest.raises(DiskFull):
        real.write_at(handle, 0, b"x")
    monkeypatch.setattr(os, "pwrite", _failing(errno.EIO))
    with pytest.raises(StorageError) as caught:
        real.write_at(handle, 0, b"x")
    assert not isinstance(caught.value, DiskFull)
    for name in ("mkdir", "replace", "link"):
        monkeypatch.setattr(os, name, _failing(number))
    for action in (lambda: real.make_folder("x"), lambda: real.rename("a", "b"), lambda: real.link("a", "b")):
        with pytest.raises(DiskFull):
            action()
    real.close(handle)


def test_a_failed_sync_poisons_its_handle(real: RealFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second one would succeed, and mean nothing."""
    handle, other = real.open("a", create=True), real.open("b", create=True)
    real.write_at(handle, 0, b"x")
    monkeypatch.setattr("jsonqueue.storage.files._data_sync", _failing(errno.EIO))
    with pytest.raises(SyncFailed):
        real.sync(handle)
    monkeypatch.undo()
    for action in (lambda: real.sync(handle), lambda: real.write_at(handle, 0, b"y"), lambda: real.truncate(handle, 0)):
        with pytest.raises(SyncFailed):
            action()
    real.sync(other)
    real.close(handle)
    real.close(other)


def test_a_failed_sync_of_a_folder_is_told(real: RealFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name may not be there after a power cut."""
    monkeypatch.setattr(os, "fsync", _failing(errno.EIO))
    with pytest.raises(SyncFailed):
        real.sync_folder()


def test_short_reads_and_writes_are_carried_on(real: RealFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may do less than it was asked for."""
    pwrite, pread = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda handle, data, offset: pwrite(handle, data[:3], offset))
    monkeypatch.setattr(os, "pread", lambda handle, size, offset: pread(handle, min(size, 4), offset))
    make(real, "a", b"0123456789")
    assert content(real, "a") == b"0123456789"
    handle = real.open("a")
    assert real.read(handle, 2, 99) == b"23456789"
    assert write_all(real, handle, 2, b"abcdefgh", enough=4) == 8
    assert real.read(handle, 0, 99) == b"01abcdef89"
    real.close(handle)


# ── the one in memory ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_crash_keeps_what_was_synced_and_nothing_else() -> None:
    """Bytes and names alike."""
    files = MemoryFiles()
    make(files, "synced", b"1")
    files.sync_folder()
    handle = files.open("synced")
    write_all(files, handle, 0, b"2")
    make(files, "nameless", b"3")
    files.rename("synced", "renamed")
    files.crash()
    assert files.list() == ["synced"]
    assert content(files, "synced") == b"1"
    with pytest.raises(KeyError):
        files.read(handle, 0, 1)


def test_a_crash_may_keep_any_part_of_the_rest() -> None:
    """Each name, and each sector, by itself; but never less than was synced."""
    seen = set()
    for seed in range(200):
        files = MemoryFiles()
        make(files, "a", b"0" * 600)
        files.sync_folder()
        handle = files.open("a")
        write_all(files, handle, 600, b"1" * 1400)
        files.rename("a", "b")
        files.unlink("b") if seed % 2 else None
        files.crash(Random(seed))
        assert all(content(files, name)[:512] == b"0" * 512 for name in files.list())
        seen.add((*files.list(), *(content(files, name)[1024:1030] for name in files.list())))
    assert {(), ("a", "b", b"111111", b"111111"), ("b", b"\0" * 6)} <= seen


def test_a_poisoned_file_stays_poisoned_until_the_power_is_back() -> None:
    """As a kernel forgets that a write failed only when it restarts."""
    files = MemoryFiles()
    make(files, "a")
    files.sync_folder()
    handle = files.open("a")

    def fail(number: int, operation: str) -> None:
        raise SyncFailed(operation)

    files.fail = fail
    with pytest.raises(SyncFailed):
        files.sync(handle)
    files.fail = lambda number, operation: None
    with pytest.raises(SyncFailed):
        files.sync(handle)
    with pytest.raises(SyncFailed):
        files.write_at(handle, 0, b"x")
    files.crash()
    write_all(files, files.open("a"), 0, b"x")
    assert files.get("a") == b"x"
    assert files.copy().get("a") == b"x"
    assert "unlinked" in _trace_of_an_unlinked_file(files)


def _trace_of_an_unlinked_file(files: MemoryFiles) -> str:
    handle = files.open("a")
    files.unlink("a")
    files.sync(handle)
    return files.trace[-1]


def test_a_crash_leaves_of_an_overwrite_any_sectors_as_they_were() -> None:
    """Neither NULs nor a shorter file: each sector holds what was durable, or what was written over it."""
    seen = set()
    for seed in range(300):
        files = MemoryFiles()
        make(files, "a", b"\n" * 2000)
        files.sync_folder()
        write_all(files, files.open("a"), 100, b"x" * 1200)
        files.crash(Random(seed))
        data = content(files, "a")
        assert len(data) == 2000
        parts = data[:100], data[100:512], data[512:1024], data[1024:1300], data[1300:]
        assert all(len(set(part)) == 1 for part in parts)
        assert (parts[0] + parts[4]).strip() == b""
        seen.add(tuple(part[:1] for part in parts))
    assert len(seen) == 8


def test_rooms_fill_up() -> None:
    """Short writes first, then none; what is cut back makes room again."""
    files = MemoryFiles(room=4)
    handle = files.open("a", create=True)
    assert files.write_at(handle, 0, b"123456") == 4
    with pytest.raises(DiskFull):
        files.write_at(handle, 4, b"5")
    files.truncate(handle, 1)
    assert files.write_at(handle, 1, b"xyz!") == 3
    assert files.write_at(handle, 2, b"1234") == 2  # What is written over takes no room.
    assert files.get("a") == b"1x12"


# ── who may still write ──────────────────────────────────────────────────────────────────────────────────────────────

CHANGES: dict[str, Callable[[RealFiles, int], object]] = {
    "create": lambda files, handle: files.open("new", create=True),
    "write": lambda files, handle: files.write_at(handle, 0, b"x"),
    "truncate": lambda files, handle: files.truncate(handle, 0),
    "rename": lambda files, handle: files.rename("a", "b"),
    "link": lambda files, handle: files.link("a", "b"),
    "unlink": lambda files, handle: files.unlink("a"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_writer_that_lost_its_lock_changes_nothing(tmp_path: Path, change: Callable[[RealFiles, int], object]) -> None:
    """Neither bytes nor names; it may still read."""
    files = RealFiles(tmp_path)
    handle = files.open("a", create=True)
    files.write_at(handle, 0, b"held")
    with hold(tmp_path, "published") as lock:
        files.guard(lock.check)
        files.write_at(handle, 4, b"!")
        (tmp_path / "published.lock").unlink()
        with pytest.raises(LockLost):
            change(files, handle)
    assert files.read(handle, 0, 10) == b"held!"
    assert files.list() == ["a"]
    files.close(handle)
    files.shut()


def test_a_sync_after_which_the_lock_is_lost_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped between write and sync, and replaced meanwhile: the successor may not have read it, so it must not be acknowledged."""
    files = RealFiles(tmp_path)
    handle = files.open("a", create=True)
    with hold(tmp_path, "published") as lock:
        files.guard(lock.check)
        files.write_at(handle, 0, b"x")
        monkeypatch.setattr("jsonqueue.storage.files._data_sync", lambda handle: (tmp_path / "published.lock").unlink())
        with pytest.raises(LockLost):
            files.sync(handle)
    files.close(handle)
    files.shut()


def test_a_batch_looks_at_its_lock_twice(tmp_path: Path) -> None:
    """Before its write and after its sync, 2 µs each; nothing else on its way does."""
    looks: list[int] = []
    files = RealFiles(tmp_path)
    log = LogWriter.open(files, LogKind.PUBLISHED)
    files.guard(lambda: looks.append(1))
    for number in range(100):
        log.append(b'[{"id":"%d","data":1}]' % number, at_ms=1, first_task=number + 1)
        log.sync()
    assert len(looks) == 200
    log.close()
    files.shut()


# ── whose a name is ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_name_is_that_of_a_file_until_somebody_takes_it_away(files: Files) -> None:
    """Removed, moved, or given to another file, be it an equal one; and again once it is moved back."""
    handle = files.open("draft", create=True)
    write_all(files, handle, 0, b"x")
    assert files.has_name(handle, "draft")
    assert not files.has_name(handle, "log")
    files.rename("draft", "log")
    assert files.has_name(handle, "log")
    files.rename("log", "moved")
    assert not files.has_name(handle, "log")
    other = files.open("log", create=True)
    write_all(files, other, 0, b"x")
    assert not files.has_name(handle, "log")
    assert files.has_name(other, "log")
    files.rename("moved", "log")
    assert files.has_name(handle, "log")
    files.unlink("log")
    assert not files.has_name(handle, "log")
    files.close(handle)
    files.close(other)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not tell where an open file is")
def test_a_file_that_is_where_it_was_is_not_looked_at_again(real: RealFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its times are not: to see them at each batch cost publishing, one by one, 15 % of its rate (docs/performance.md)."""
    handle = real.open("log", create=True)
    looks = mock.Mock(side_effect=os.lstat)
    monkeypatch.setattr("jsonqueue.storage.files.os.lstat", looks)
    assert [real.has_name(handle, "log") for _ in range(3)] == [True] * 3
    assert looks.call_count == 1
    real.root.rename(real.root.parent / "elsewhere")
    assert [real.has_name(handle, "log") for _ in range(3)] == [True] * 3
    assert looks.call_count == 2
    real.close(handle)


def test_where_nobody_tells_where_a_file_is_its_name_is_looked_at(real: RealFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time."""
    monkeypatch.setattr("jsonqueue.storage.files.os.readlink", mock.Mock(side_effect=FileNotFoundError))
    handle = real.open("log", create=True)
    assert real.has_name(handle, "log")
    real.rename("log", "moved")
    assert not real.has_name(handle, "log")
    assert real.has_name(handle, "moved")
    real.close(handle)


def test_a_link_in_the_place_of_a_file_is_not_that_file(real: RealFiles) -> None:
    """Nobody would follow it there."""
    handle = real.open("log", create=True)
    real.rename("log", "moved")
    (real.root / "log").symlink_to("moved")
    assert not real.has_name(handle, "log")
    real.close(handle)


def test_a_name_that_cannot_be_looked_at_is_an_error_of_the_queues(real: RealFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says neither yes nor no."""
    handle = real.open("log", create=True)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as during:
        during.setattr("jsonqueue.storage.files.os.lstat", refuse)
        with pytest.raises(StorageError, match="log: Input/output error"):
            real.has_name(handle, "log")
    real.close(handle)


def test_a_folder_in_the_place_of_a_file_is_named_and_stays(real: RealFiles) -> None:
    """What cannot be unlinked is an error of the queue's, which names it."""
    (real.root / "draft").mkdir()
    with pytest.raises(StorageError, match="draft"):
        real.unlink("draft")
    assert (real.root / "draft").is_dir()


def test_a_short_read_is_carried_on_no_further_than_was_asked(real: RealFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system gave less than it could have; what lies behind is not this reader's."""
    make(real, "a", b"0123456789")
    handle = real.open("a")
    pread = os.pread
    sizes = iter([2, 1])
    monkeypatch.setattr(os, "pread", lambda handle, size, offset: pread(handle, min(size, next(sizes, size)), offset))
    assert real.read(handle, 1, 6) == b"123456"
    real.close(handle)


@pytest.mark.parametrize("lost", [range(4096, 8192), range(4096)])
def test_bytes_that_the_disk_does_not_give_back_are_named_and_read_around(
    files: Files, lost: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the name that the file has now, at the first of them; another kind of error is no matter of the disk."""
    make(files, "draft", bytes(range(1, 129)) * 128)
    handle = files.open("draft")
    whole = files.read(handle, 0, 99_999)
    files.rename("draft", "a")
    if isinstance(files, MemoryFiles):
        files.spoil("a", lost)
    else:
        pread = os.pread

        def fails(descriptor: int, size: int, offset: int) -> bytes:
            if lost.start <= offset < lost.stop:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return pread(descriptor, min(size, lost.start - offset) if offset < lost.start else size, offset)

        monkeypatch.setattr(os, "pread", fails)
    with pytest.raises(StorageError, match=f"^a cannot be read at byte {lost.start}: Input/output error"):
        files.read(handle, 0, 99_999)
    around = whole[: lost.start] + bytes(4096) + whole[lost.stop :]
    assert read_around(files, handle) == (around, [(lost.start, 4096)])
    assert files.read(handle, 8192, 10) == whole[8192:8202]
    files.close(handle)
    with pytest.raises((OSError, KeyError)):
        files.read(handle, 8192, 10)
