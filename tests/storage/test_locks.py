"""One writer for each file, for life; and whoever is refused is told who it is."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jsonqueue.errors import FolderRefused, LockLost, ManagerRunning
from jsonqueue.storage import locks
from jsonqueue.storage.locks import hold, holder


def test_a_second_holder_is_told_who_the_first_is(tmp_path: Path) -> None:
    """With pid and purpose, and how to end that one; and it writes nothing."""
    with hold(tmp_path, "queue", what="jsonqueue serve"):
        told = (tmp_path / "queue.lock").read_bytes()
        with pytest.raises(ManagerRunning) as caught:
            hold(tmp_path, "queue", what="another")
        assert caught.value.holder == holder(tmp_path, "queue") == f"process {os.getpid()} (jsonqueue serve)"
        assert caught.value.exit_status == 75
        assert caught.value.hint.endswith(f": jsonqueue stop --queue {tmp_path}")
        assert (tmp_path / "queue.lock").read_bytes() == told
        hold(tmp_path, "published").release()


def test_a_copy_of_a_lock_file_is_held_by_nobody(tmp_path: Path) -> None:
    """Of a folder that was copied while it was in use. `status` named the manager of the other folder, and `stop` waited for its end."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    with hold(here, "queue", what="the one"):
        shutil.copytree(here, there)
        assert (holder(here, "queue"), holder(there, "queue")) == (f"process {os.getpid()} (the one)", "")
        with hold(there, "queue", what="the other"):
            assert holder(there, "queue") == f"process {os.getpid()} (the other)"


def test_the_lock_of_a_log_names_the_log(tmp_path: Path) -> None:
    """It may be held by somebody who serves nothing."""
    with hold(tmp_path, "progress"), pytest.raises(ManagerRunning, match="which holds the progress log"):
        hold(tmp_path, "progress", timeout=0.01)


def test_a_lock_file_stays_and_is_used_again(tmp_path: Path) -> None:
    """To delete it would part the waiters onto two files. It is readable by us alone."""
    lock = hold(tmp_path, "queue")
    inode = (tmp_path / "queue.lock").stat()
    assert inode.st_mode & 0o777 == 0o600
    assert lock.intact()
    lock.release()
    lock.release()
    assert not lock.intact()
    assert holder(tmp_path, "queue") == ""
    with hold(tmp_path, "queue"):
        assert (tmp_path / "queue.lock").stat().st_ino == inode.st_ino


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    """However it ends; what its file still says is not believed."""
    code = "import os, sys; from jsonqueue.storage.locks import hold; hold(sys.argv[1], 'queue', what='x'); os._exit(9)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=30)
    assert b'"what":"x"' in (tmp_path / "queue.lock").read_bytes()
    assert holder(tmp_path, "queue") == ""
    hold(tmp_path, "queue").release()


def test_a_lock_file_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    """Somebody else may hold the new one."""
    lock = hold(tmp_path, "published")
    (tmp_path / "published.lock").unlink()
    assert not lock.intact()
    with hold(tmp_path, "published") as other:
        assert other.intact()
        assert not lock.intact()
    lock.release()


def test_a_lock_file_that_is_replaced_while_it_is_locked_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is looked at once more after the lock: it is tried again on the file that has the name now."""
    looks, look = iter([False]), locks.FolderLock.intact
    monkeypatch.setattr(locks.FolderLock, "intact", lambda lock: next(looks, look(lock)))
    with hold(tmp_path, "queue") as lock:
        assert lock.intact()
        assert holder(tmp_path, "queue")


def test_what_cannot_be_locked_is_refused(tmp_path: Path) -> None:
    """A link where the lock file belongs."""
    (tmp_path / "queue.lock").symlink_to("/etc/passwd")
    with pytest.raises(FolderRefused, match="cannot be locked"):
        hold(tmp_path, "queue")


def test_a_lock_is_let_go_where_its_file_cannot_be_emptied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the file says is for people. A publish that had stored its task ended with the error, and kept the lock."""

    def no_room(descriptor: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    lock = hold(tmp_path, "published")
    with monkeypatch.context() as full:
        full.setattr(os, "ftruncate", no_room)
        lock.release()
    hold(tmp_path, "published").release()


def test_where_there_are_no_locks_nobody_holds_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filesystem without flock: refused, and not locked in some weaker way."""

    def missing(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(fcntl, "flock", missing)
        with pytest.raises(FolderRefused, match="cannot be locked: Function not implemented") as caught:
            hold(tmp_path, "queue")
    assert caught.value.exit_status == 77
    assert holder(tmp_path, "queue") == ""


@pytest.mark.parametrize(
    "told",
    [
        "",
        "rubbish",
        '{"pid":1}',
        '{"pid":999999999,"started":"1","what":""}',
        '{"pid":2147483648,"started":"","what":""}',
        '{"pid":1,"started":"x","what":""}',
    ],
)
def test_a_holder_who_does_not_live_holds_nothing(tmp_path: Path, told: str) -> None:
    """Nor does one whose pid another process has now."""
    (tmp_path / "queue.lock").write_text(told)
    assert holder(tmp_path, "queue") == ""


def test_a_holder_of_another_user_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may not be signalled; it is there."""

    def refuse(pid: int, signal: int) -> None:
        raise PermissionError

    with hold(tmp_path, "queue"):
        monkeypatch.setattr(os, "kill", refuse)
        assert holder(tmp_path, "queue") == f"process {os.getpid()}"


def test_a_holder_that_does_not_say_which_file_it_locked_is_named(tmp_path: Path) -> None:
    """As those of an earlier jsonqueue do not."""
    with hold(tmp_path, "queue", what="the one"):
        told = json.loads((tmp_path / "queue.lock").read_bytes())
        del told["inode"]
        (tmp_path / "queue.lock").write_text(json.dumps(told))
        assert holder(tmp_path, "queue") == f"process {os.getpid()} (the one)"


def test_who_asks_for_the_holder_leaves_no_file_open(tmp_path: Path) -> None:
    with hold(tmp_path, "queue"):
        before = len(os.listdir("/dev/fd"))
        assert holder(tmp_path, "queue")
        assert len(os.listdir("/dev/fd")) == before


def test_a_lock_may_be_given_back_by_another_thread(tmp_path: Path) -> None:
    """It is its process that holds it."""
    lock = hold(tmp_path, "queue")
    thread = threading.Thread(target=lock.release)
    thread.start()
    thread.join()
    hold(tmp_path, "queue").release()


def test_a_lock_that_is_lost_is_said_so(tmp_path: Path) -> None:
    """With the name of its file; the exit status is that of a disk that cannot be written to."""
    with hold(tmp_path, "published") as lock:
        lock.check()
        (tmp_path / "published.lock").rename(tmp_path / "aside")
        with pytest.raises(LockLost, match=r"published\.lock was removed or replaced") as caught:
            lock.check()
        assert caught.value.exit_status == 74
        (tmp_path / "aside").rename(tmp_path / "published.lock")
        lock.check()


def test_on_a_full_disk_a_lock_is_held_without_saying_by_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written into it is for people; a broker that waits for room must hold its lock all the same."""

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with hold(tmp_path, "queue") as lock:
        assert lock.intact()
        with pytest.raises(ManagerRunning, match="another process"):
            hold(tmp_path, "queue")


def test_a_lock_that_cannot_be_written_to_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a broken disk, unlike on a full one, nothing rests on it; and nobody else is kept out."""

    def broken(*arguments: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken_disk:
        broken_disk.setattr(os, "pwrite", broken)
        with pytest.raises(FolderRefused, match=r"queue\.lock cannot be locked: Input/output error"):
            hold(tmp_path, "queue")
    with hold(tmp_path, "queue") as lock:
        assert lock.intact()


def test_where_the_system_does_not_say_when_a_process_began_its_pid_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No /proc: a holder that lives is named all the same."""
    monkeypatch.setattr(Path, "read_text", lambda path: (_ for _ in ()).throw(FileNotFoundError(path)))
    with hold(tmp_path, "queue"):
        assert holder(tmp_path, "queue") == f"process {os.getpid()}"
