"""S5, S6: nothing in the queue's folder is followed, waited for or trusted because of its name; and all of it is ours alone."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from jsonqueue.broker.manager import BrokerManager
from jsonqueue.channel.registration import SOCKET_NAME
from jsonqueue.client.publisher import Publisher
from jsonqueue.config import Config
from jsonqueue.errors import FolderRefused, JsonQueueError, LockLost, PublishUnknown
from jsonqueue.storage.recovery import inspect
from security.planted import PLANTED, PREY, QUEUE_FILES

QUICK = Config(flush_interval_ms=10, segment_max_bytes=4096, finished_keep_max=1, disk_reserve_bytes=1024)


@pytest.fixture
def prey(tmp_path: Path) -> Path:
    """A file that a planted link points to."""
    path = tmp_path / "prey"
    path.write_bytes(PREY)
    path.chmod(0o644)
    return path


@pytest.fixture
def queue_dir(tmp_path: Path) -> Path:
    path = tmp_path / "queue"
    path.mkdir(0o700)
    return path


@pytest.fixture
def patience() -> Iterator[None]:
    """Whatever waits for a planted pipe is interrupted, and fails."""

    def give_up(number: int, frame: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__.strip("_"))
@pytest.mark.parametrize("name", QUEUE_FILES)
def test_a_planted_path_is_never_followed(queue_dir: Path, prey: Path, name: str, plant: Callable[[Path, Path], None]) -> None:
    """Publishing (which recovers, appends) and folding are refused by name, or go their way beside it; no file elsewhere is touched."""
    path = queue_dir / name
    path.parent.mkdir(0o700, exist_ok=True)
    if (name, plant.__name__) in {("archive", "_folder"), ("previous", "_folder")}:
        pytest.skip("that is what belongs there")
    plant(path, prey)
    before = (prey.read_bytes(), prey.stat().st_mode, prey.stat().st_mtime_ns)
    with suppress(JsonQueueError), Publisher(queue_dir, timeout=5) as publisher:
        publisher.publish(1)
    with suppress(JsonQueueError):
        _fold(queue_dir)
    assert before == (prey.read_bytes(), prey.stat().st_mode, prey.stat().st_mtime_ns)
    assert not prey.with_name("not-there").exists()


def _fold(queue_dir: Path) -> None:
    """What a manager does with the folder, in this process."""
    from jsonqueue.channel.registration import Listener
    from jsonqueue.storage.checkpoint import final_checkpoint
    from jsonqueue.storage.folder import load_config, open_folder
    from jsonqueue.storage.locks import hold, holder
    from jsonqueue.storage.recovery import inspect
    from jsonqueue.storage.repair import verify

    files = open_folder(queue_dir, create=True)
    try:
        for lock in ("queue", "published", "progress"):
            holder(queue_dir, lock)
        with hold(queue_dir, "queue"), hold(queue_dir, "published"), hold(queue_dir, "progress"):
            load_config(files)
            Listener(queue_dir).close()
            final_checkpoint(files, config=QUICK, at_ms=1_763_000_000_000)
        verify(queue_dir)
        inspect(queue_dir)
    finally:
        files.shut()


@pytest.mark.processes
def test_all_that_is_made_is_ours_alone_at_every_step(queue_dir: Path) -> None:
    """Folders 0700, files and the socket 0600, whatever the umask, from the first moment on: looked at all the while it works."""
    wrong: set[tuple[str, str]] = set()
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for folder, _, names in os.walk(queue_dir):
                for path in [folder, *[os.path.join(folder, name) for name in names]]:
                    with suppress(FileNotFoundError):
                        found = os.lstat(path)
                        seen.add(os.path.basename(path))
                        if stat.S_IMODE(found.st_mode) != (0o700 if stat.S_ISDIR(found.st_mode) else 0o600):
                            wrong.add((path, oct(found.st_mode)))

    before = os.umask(0)
    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        with BrokerManager(queue_dir, QUICK) as manager, Publisher(queue_dir) as publisher:
            for _ in range(5):
                publisher.publish_many(range(50))
                manager.checkpoint()
    finally:
        os.umask(before)
        over.set()
        watcher.join()
    assert not wrong
    assert {"queue.json", "queue.lock", "published.lock", "progress.lock", SOCKET_NAME} <= seen


@pytest.mark.processes
def test_who_may_rename_the_folder_away_ends_the_service_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The folder above is writable by all: the manager says so. Swapped, nothing is written to the other one; put back, all is there."""
    above, queue_dir = tmp_path / "volume", tmp_path / "volume" / "queue"
    above.mkdir()
    above.chmod(0o777)
    manager = BrokerManager(queue_dir, QUICK)
    manager.start()
    manager.wait_ready()
    (said,) = [message for message in caplog.messages if "rename" in message]
    assert said.startswith(f"anybody may rename {queue_dir} away")
    assert f"chmod +t {above}" in said
    with Publisher(queue_dir, timeout=5) as publisher:
        publisher.publish(1, id="a")
        queue_dir.rename(above / "gone")
        queue_dir.mkdir(0o700)
        if os.geteuid() == 0:
            os.chown(queue_dir, 65534, 65534)
        else:
            queue_dir.chmod(0o777)  # as near as it comes to another's
        with pytest.raises((PublishUnknown, FolderRefused), match=r"belongs to user|can be written to by"):
            publisher.publish(2, id="b")
    with pytest.raises(FolderRefused):
        Publisher(queue_dir).publish(3, id="c")
    with suppress(LockLost):  # unless it has had nothing to write since
        manager.stop()
    assert not list(queue_dir.iterdir())
    queue_dir.rmdir()
    (above / "gone").rename(queue_dir)
    assert inspect(queue_dir).state.tasks.keys() == {"a"}


@pytest.mark.processes
def test_a_manager_that_stops_makes_no_file_in_a_folder_that_took_the_place_of_its_own(tmp_path: Path) -> None:
    """It has had nothing to write since: it looks at the lock that it holds before it takes the others, by the folder's name."""
    queue_dir = tmp_path / "queue"
    manager = BrokerManager(queue_dir)
    manager.start()
    manager.wait_ready()
    queue_dir.rename(tmp_path / "gone")
    queue_dir.mkdir(0o700)
    with pytest.raises(LockLost):
        manager.stop()
    assert not list(queue_dir.iterdir())


_AS_SOMEBODY_ELSE = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
caller = socket.socket(socket.AF_UNIX)
try:
    caller.connect(sys.argv[1])
    caller.settimeout(5)
    print("heard", caller.recv(1))
except PermissionError:
    print("no way in")
"""


@pytest.mark.processes
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_kept_out_twice(queue_dir: Path) -> None:
    """By the modes of the folder; and where these were opened by mistake, by the kernel's word on who calls."""
    os.chmod(queue_dir, 0o700)
    chain = [queue_dir, *queue_dir.parents][:-1]
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in chain}
    with BrokerManager(queue_dir):
        path = str(queue_dir / SOCKET_NAME)
        assert _somebody_else(path) == "no way in"
        try:
            for folder in chain:
                folder.chmod(modes[folder] | 0o711)
            assert _somebody_else(path) == "no way in", "the socket itself is 0600"
            os.chmod(path, 0o666)
            assert _somebody_else(path) == "heard b''"
        finally:
            for folder in chain:
                folder.chmod(modes[folder])
        with Publisher(queue_dir) as publisher:
            publisher.publish("and its owner is served")


def _somebody_else(path: str) -> str:
    # -S -E, cwd /: somebody else may not be able to read where this runs.
    done = subprocess.run([sys.executable, "-S", "-E", "-c", _AS_SOMEBODY_ELSE, path], capture_output=True, text=True, cwd="/", check=False)
    return done.stdout.strip() or done.stderr


def test_no_address_is_abstract(queue_dir: Path) -> None:
    """An abstract socket has no modes: anybody on the machine, in any container that shares its network, could connect."""
    from jsonqueue.channel.registration import Listener

    listener = Listener(queue_dir)
    with socket.socket(fileno=os.dup(listener.fileno())) as copy:
        assert copy.getsockname() == str(queue_dir / SOCKET_NAME)
    listener.close()
