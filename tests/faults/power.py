"""The power of a real ext4 is cut while brokers work on it.

The filesystem lives in a file, over a loop device, mounted in a mount namespace of this process's own (run it under ``unshare -m``). A fork
lives the canonical life on it, again and again; this process is the witness, outside of the mount. At a random moment it asks the
kernel to shut the filesystem down without flushing its journal: what was not durable is gone, and the next mount replays the journal, as
after a power cut. Then the files are judged, with the power cut again in the midst of that, now and then.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from random import Random

from faults.lanes import Lane, arguments, fast_folder
from faults.life import Ledger, Life, judge, recover, the_life
from jsonqueue.storage.files import RealFiles

__all__ = ["Disk", "main", "make_folders", "run", "why_not"]

SHUTDOWN = 0x8004587D
"""EXT4_IOC_SHUTDOWN."""
NO_LOG_FLUSH = 2
MEGABYTES = 24
_FAILED = b"failed "


def why_not() -> str:
    """Why it cannot be done here; empty when it can."""
    if sys.platform != "linux":
        return "power cuts need Linux"
    if os.geteuid() != 0:
        return "power cuts need root"
    for program in ("unshare", "mkfs.ext4", "mount"):
        if subprocess.run(["which", program], capture_output=True, check=False).returncode:
            return f"power cuts need {program}"
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    return "no mount namespace may be made here" if probe.returncode else ""


Work = Callable[[RealFiles, Callable[[str], None]], None]


class Disk:
    """An ext4 in a file."""

    def __init__(self, folder: Path) -> None:
        self._image, self.root = folder / "image", folder / "mount"
        self.root.mkdir()
        with self._image.open("wb") as image:
            image.truncate(MEGABYTES << 20)
        run("mkfs.ext4", "-q", "-F", "-m", "0", "-J", "size=4", str(self._image))
        self._device = run("losetup", "-f", "--show", str(self._image)).strip()
        self.mounted = False
        self.mount()

    def mount(self) -> None:
        run("mount", "-t", "ext4", self._device, str(self.root))
        self.mounted = True

    def unmount(self) -> None:
        for _ in range(200):
            if not subprocess.run(["umount", str(self.root)], capture_output=True, check=False).returncode:
                self.mounted = False
                return
            time.sleep(0.005)
        run("umount", str(self.root))

    def cut(self) -> None:
        """No journal commit, no write-back: gone is what was not durable."""
        handle = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(handle)

    def close(self) -> None:
        if self.mounted:
            run("umount", "-l", str(self.root))  # Also where a failed case still holds a file of it.
        run("losetup", "-d", self._device)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def main() -> None:
    options = arguments("power cuts of a real ext4", cuts=100)
    lane = Lane(options)
    chance = Random(options.seed)
    reason = why_not()
    if reason:
        sys.exit(reason)
    with fast_folder() as folder:
        disk = Disk(folder)
        try:
            length_ms = _length_ms(disk)
            for number in range(options.cuts):
                if lane.over:
                    break
                lane.attempt(f"cut {number} of seed {options.seed}", lambda number=number: _cycle(lane, disk, chance, number, length_ms))
        finally:
            disk.close()
    lane.end()


def _length_ms(disk: Disk) -> float:
    """How long a life takes."""
    files = make_folders(disk.root / "measure")
    ledger = Ledger()
    began = time.monotonic()
    _in_fork(lambda: the_life(Life(files, ledger.hear), ledger.hear))
    files.shut()
    return (time.monotonic() - began) * 1_000


def _in_fork(work: Callable[[], None]) -> None:
    """Do it in a process of its own, so that no handle of it keeps the disk busy."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 - told to the parent
            os.write(writer, traceback.format_exc()[-4_000:].encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        error = pipe.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert not error, error
    assert status == 0, f"it ended with {status}, without a word"


def make_folders(root: Path) -> RealFiles:
    root.mkdir(mode=0o700)
    for name in ("archive", "previous"):
        (root / name).mkdir(mode=0o700)
    handle = os.open(root.parent, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    files = RealFiles(root)
    files.sync_folder()
    return files


def _cycle(lane: Lane, disk: Disk, chance: Random, number: int, length_ms: float) -> None:
    """A new queue; a life; a cut. Every third time another cut within the recovery. Then the judgement."""
    root = disk.root / f"q{number}"
    ledger = Ledger()
    make_folders(root).shut()
    _work_until_cut(disk, root, ledger, chance.random() * length_ms * 1.1, _live)
    lane.counts["power cuts"] += 1
    if number % 3 == 0:
        _work_until_cut(disk, root, ledger, chance.random() * length_ms * 0.4, lambda files, say: recover(files, ledger, say, generation=1))
        lane.counts["power cuts"] += 1
        lane.counts["power cuts within a recovery"] += 1
    lane.counts["acknowledged"] += len(ledger.acknowledged)
    files = RealFiles(root)
    try:
        _in_fork(lambda: judge(files, ledger, drain=number % 4 == 0))
    finally:
        files.shut()
        subprocess.run(["rm", "-rf", str(root)], check=True)


def _live(files: RealFiles, say: Callable[[str], None]) -> None:
    the_life(Life(files, say), say)


def _work_until_cut(disk: Disk, root: Path, ledger: Ledger, wait_ms: float, work: Work) -> None:
    reader, writer = os.pipe()
    began_reader, began_writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_cut_off(root, work, writer, began_writer)
    os.close(writer)
    os.close(began_writer)
    os.read(began_reader, 1)
    os.close(began_reader)
    time.sleep(wait_ms / 1_000)
    before = _heard_by_now(reader)
    disk.cut()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with os.fdopen(reader, "rb") as pipe:
        words = before + pipe.read()
    disk.unmount()
    disk.mount()
    for line in words[: words.rfind(b"\n") + 1].splitlines(keepends=True):
        # What is promised while the power goes does not count: on Linux 6.18 an fdatasync that is under way then may report success.
        # Nor does what fails then; but what failed while there was power is a finding.
        if len(line) <= len(before) or line.startswith((b"try ", b"damaged")):
            assert not line.startswith(_FAILED), line.decode()
            ledger.hear(line.decode())
        before = before[len(line) :]


def _heard_by_now(reader: int) -> bytes:
    os.set_blocking(reader, False)
    words = b""
    try:
        while chunk := os.read(reader, 65_536):
            words += chunk
    except BlockingIOError:
        pass
    os.set_blocking(reader, True)
    return words


def _be_cut_off(root: Path, work: Work, writer: int, began: int) -> None:
    """In the fork; never returns. When the power is gone it gets errors, tells of them in vain, and is then killed."""
    try:
        files = RealFiles(root)
        os.write(began, b".")
        work(files, lambda word: os.write(writer, word.encode() + b"\n") and None)
    except BaseException as error:  # noqa: BLE001 - told to the parent
        os.write(writer, b"%b%b\n" % (_FAILED, " ".join(f"{type(error).__name__}: {error}".split())[:2_000].encode(errors="replace")))
        os.write(began, b".")
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
