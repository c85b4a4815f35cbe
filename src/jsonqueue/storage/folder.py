"""The queue folder: made, checked, opened.

A folder is used only if it is ours, nobody else may write to it, and it lies on a disk of this machine: the locks mean nothing on a network
filesystem, and an fsync there promises little. Folders are 0700, files 0600.

A queue is begun in an empty folder, or beside nothing but a README, settings, dot files and folders: a mistyped path must not strew the
queue's files among somebody's own.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from contextlib import suppress
from pathlib import Path

from jsonqueue.config import CONFIG_FILE, Config, parse_config
from jsonqueue.errors import FolderRefused, InvalidConfig, StorageError
from jsonqueue.storage.files import Files, RealFiles

__all__ = ["ARCHIVE", "MOUNTS", "absolute", "denied_by", "load_config", "open_folder", "renamable_in", "require_folder"]

ARCHIVE = "archive"
_FOLDERS = (ARCHIVE, "previous")
_OURS = re.compile(
    r"queue\.json(\..*)?|(queue|published|progress)\.lock|(published|progress)(-\d{12}-\d{8,10}\.jsonl|\.begun-\d{8,10})|jsonqueue\.sock"
)
_MAY_BE_THERE = re.compile(rf"\.|README|{re.escape(CONFIG_FILE)}$|reserve$")
MOUNTS = Path("/proc/self/mountinfo")
_ESCAPED = re.compile(r"\\([0-7]{3})")
"""How the kernel writes a blank, a tab, a line feed and a backslash in there."""
# fmt: off
_NETWORK = frozenset((
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "gfs", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4",
    "ocfs2", "orangefs", "pvfs2", "smb2", "smb3", "smbfs", "vboxsf",
))
# fmt: on


def absolute(path: str | os.PathLike[str]) -> str:
    """The path from the root, ``~`` in it a name as any other. Raises ``ValueError`` for an empty one."""
    if not os.fspath(path):  # a variable without a value, which would be the current folder
        raise ValueError("an empty name is no queue folder (the current one is '.')")
    return os.path.abspath(path)


def open_folder(path: str | Path, *, create: bool, force: bool = False, read_only: bool = False) -> RealFiles:
    """The files of a queue folder. ``create``: make it, and what belongs in it, if need be.

    ``force``: use it even on a network filesystem. Raises :class:`FolderRefused` with the reason and what to do.
    """
    root = Path(path).resolve()
    if create:
        _make(root)
    _check(root, create=create)
    if not force:
        _check_local(root)
    try:
        return _opened(root, create=create, read_only=read_only)
    except (PermissionError, StorageError) as error:
        refused = denied_by(root, error)
        if refused is None:
            raise
        raise refused from error


def _opened(root: Path, *, create: bool, read_only: bool) -> RealFiles:
    files = RealFiles(root, read_only=read_only)
    try:
        _settle_in(files, create=create)
    except BaseException:
        files.shut()
        raise
    return files


def denied_by(path: str | Path, error: BaseException | None) -> FolderRefused | None:
    """The same error told of the folder, if that is another user's, or beyond one that is, or its mode denies its owner what it needs."""
    if error is None or not isinstance(error if isinstance(error, OSError) else error.__cause__, PermissionError):
        return None
    try:
        found = os.stat(path)
    except PermissionError:
        return FolderRefused(f"{path} cannot be reached: permission denied", hint=_NOT_OURS)
    except OSError:
        return None
    if found.st_uid != os.geteuid():
        return _of_another(path, found.st_uid)
    if found.st_mode & stat.S_IRWXU == stat.S_IRWXU:
        return None
    return FolderRefused(
        f"{path} cannot be used: permission denied, its mode is {stat.S_IMODE(found.st_mode):04o}",
        hint=f"chmod u+rwx {shlex.quote(str(path))}",
    )


_NOT_OURS = "run as its owner, or use another folder"


def _of_another(path: str | Path, uid: int) -> FolderRefused:
    return FolderRefused(f"{path} belongs to user {uid}, not to us ({os.geteuid()})", hint=_NOT_OURS)


def renamable_in(path: str | Path) -> Path | None:
    """The nearest folder above this one in which anybody may rename what lies there: all may write to it, and it is not sticky. None: there
    is none."""
    for above in Path(path).resolve().parents:
        with suppress(OSError):  # one that we may not look at
            mode = above.stat().st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                return above
    return None


def require_folder(path: str | Path) -> None:
    """Raise :class:`FolderRefused` if this is something else."""
    if not os.path.isdir(path):
        raise FolderRefused(f"{path} is not a folder", hint="name the folder that holds queue.json, not a file in it")


def _settle_in(files: RealFiles, *, create: bool) -> None:
    if not create:
        for name in _FOLDERS:
            files.check_folder(name)
        return
    _check_unlittered(files)
    _take_from_its_group(files.root)
    for name in _FOLDERS:
        files.make_folder(name)
    files.sync_folder()


def _check_unlittered(files: RealFiles) -> None:
    """Whether it is a queue already, or may become one."""
    names = files.list()
    if any(_OURS.fullmatch(name) for name in names):
        return
    for name in names:
        if not _MAY_BE_THERE.match(name) and not (files.root / name).is_dir():
            raise FolderRefused(
                f"{files.root} holds {name!r} and no queue: a new queue would be strewn among somebody's files",
                hint="name a folder that is empty or does not exist yet, such as queue_data in it",
            )


def load_config(files: Files) -> Config:
    """The settings in the folder's ``jsonqueue.toml``; the defaults where there is none. Raises :class:`InvalidConfig`."""
    try:
        handle = files.open(CONFIG_FILE)
    except FileNotFoundError:
        return Config()
    try:
        text = files.read(handle, 0, files.size(handle)).decode()
    except UnicodeDecodeError as error:
        raise InvalidConfig(f"{CONFIG_FILE} is not UTF-8: {error}") from None
    finally:
        files.close(handle)
    return parse_config(text)


def _make(root: Path) -> None:
    try:
        str(root).encode()
    except UnicodeEncodeError:  # The brokers are told the name as JSON.
        raise FolderRefused(
            f"the queue folder {root} has a name that is not UTF-8", hint="name a folder whose whole path is UTF-8"
        ) from None
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        return  # no folder, and as it is
    except OSError as error:
        part = next((part for part in root.parents if os.path.exists(part)), root)
        hint = f"it would be made in {part}" if part.is_dir() else f"{part} is a file"
        raise FolderRefused(f"the queue folder {root} cannot be made: {error.strerror}", hint=hint) from error


def _take_from_its_group(root: Path) -> None:
    """A checkout under umask 002 may be written to by its group; where nothing else speaks against a queue in it, that is ours to mend."""
    mode = stat.S_IMODE(root.stat().st_mode)
    if mode & stat.S_IWGRP:
        root.chmod(mode & ~stat.S_IWGRP)


def _check(root: Path, *, create: bool) -> None:
    try:
        found = root.stat()
    except FileNotFoundError:
        raise FolderRefused(f"there is no queue folder {root}", hint="`jsonqueue serve` and `jsonqueue publish` make one") from None
    except OSError as error:
        raise FolderRefused(f"the queue folder {root} cannot be used: {error.strerror}") from error
    require_folder(root)
    if found.st_uid != os.geteuid():
        raise _of_another(root, found.st_uid)
    if found.st_mode & (stat.S_IWOTH if create else stat.S_IWGRP | stat.S_IWOTH):
        who = "everybody" if found.st_mode & stat.S_IWOTH else "its group"
        raise FolderRefused(
            f"{root} can be written to by {who}", hint=f"whoever can write to it can change what runs: chmod go-w {shlex.quote(str(root))}"
        )


def _check_local(root: Path) -> None:
    kind = _filesystem_of(root)
    if kind in _NETWORK or kind.startswith("fuse"):
        raise FolderRefused(
            f"{root} lies on a network filesystem ({kind}), where neither locks nor fsync can be relied on",
            hint="use a folder on a disk of this machine",
        )


def _filesystem_of(root: Path) -> str:
    """The type of the filesystem that holds ``root``; empty where the system does not say (macOS)."""
    try:
        # Lines end at line feeds alone: the name of a mount point may hold whatever else splitlines() takes for an end.
        lines = os.fsdecode(MOUNTS.read_bytes()).rstrip("\n").split("\n")
    except OSError:
        return ""
    best, kind = -1, ""
    for fields in (line.split(" ") for line in lines):
        point = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), fields[4])
        if (root == Path(point) or Path(point) in root.parents) and len(point) >= best:
            best, kind = len(point), fields[fields.index("-", 6) + 1]
    return "" if kind == "fuseblk" else kind
