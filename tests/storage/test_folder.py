"""A queue folder is ours alone and on this machine, or it is not used."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from unittest import mock

import pytest

from jsonqueue.config import CONFIG_FILE, Config
from jsonqueue.errors import FolderRefused, InvalidConfig
from jsonqueue.storage import folder
from jsonqueue.storage.folder import load_config, open_folder, renamable_in
from jsonqueue.storage.locks import hold
from jsonqueue.storage.memory import MemoryFiles


@pytest.mark.skipif(sys.platform == "darwin", reason="all names are UTF-8 there")
def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Before anything is stored in it: no broker could serve it, since the name does not go into JSON."""
    for path in (tmp_path / "q\udcff", tmp_path / "q\udcff" / "queue"):
        with pytest.raises(FolderRefused, match="has a name that is not UTF-8"):
            open_folder(path, create=True)
    assert not [*tmp_path.iterdir()]


def test_a_folder_is_made_with_what_belongs_in_it(tmp_path: Path) -> None:
    """0700, parents and all; opening it again changes nothing."""
    old = os.umask(0)
    try:
        files = open_folder(tmp_path / "deep" / "q", create=True)
    finally:
        os.umask(old)
    assert files.list() == ["archive", "previous"]
    assert files.root == (tmp_path / "deep" / "q").resolve()
    assert {path.stat().st_mode & 0o777 for path in [files.root, *files.root.iterdir()]} == {0o700}
    files.shut()
    open_folder(tmp_path / "deep" / "q", create=False, read_only=True).shut()


def test_a_tilde_in_a_path_is_a_name_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is to the locks: they would be those of another folder than the files. With JSONQUEUE_DIR=~/q, which no shell has read,
    `jsonqueue checkpoint` folded and unlinked the logs of the queue in the home folder while brokers wrote to them."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    open_folder(tmp_path / "home" / "q", create=True).shut()
    files = open_folder("~/q", create=True)
    with hold("~/q", "queue"):
        assert files.root == tmp_path / "~" / "q"
        assert files.list() == ["archive", "previous", "queue.lock"]
    files.shut()


def test_a_folder_that_is_not_there_is_not_made_up(tmp_path: Path) -> None:
    """Who only looks makes none."""
    with pytest.raises(FolderRefused, match="there is no queue folder"):
        open_folder(tmp_path / "none", create=False)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("create", [False, True])
def test_a_file_is_no_folder(tmp_path: Path, create: bool) -> None:
    """Nor is a folder beneath one."""
    (tmp_path / "queue.json").write_text("{}")
    with pytest.raises(FolderRefused):
        open_folder(tmp_path / "queue.json", create=create)
    with pytest.raises(FolderRefused):
        open_folder(tmp_path / "queue.json" / "q", create=create)


@pytest.mark.parametrize(("mode", "who"), [(0o777, "everybody"), (0o702, "everybody"), (0o770, "its group")])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int, who: str) -> None:
    """Whoever can write to it can change what runs."""
    tmp_path.chmod(mode)
    with pytest.raises(FolderRefused, match=who) as caught:
        open_folder(tmp_path, create=False)
    assert "chmod go-w" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_checkout_under_a_generous_umask_is_mended(tmp_path: Path) -> None:
    """Its group could write to it; it is ours, so that is taken away. What everybody could write to is not trusted."""
    tmp_path.chmod(0o775)
    open_folder(tmp_path, create=True).shut()
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    tmp_path.chmod(0o777)
    with pytest.raises(FolderRefused):
        open_folder(tmp_path, create=True)


def test_a_folder_that_is_refused_keeps_what_its_group_may(tmp_path: Path) -> None:
    """A project that several work on, say, for which somebody takes a wrong path: it is no queue, and not ours to mend."""
    tmp_path.chmod(0o775)
    far_away = mock.patch.object(folder, "_check_local", side_effect=FolderRefused("far away"))
    with far_away, pytest.raises(FolderRefused, match="far away"):
        open_folder(tmp_path, create=True)
    (tmp_path / "a.txt").touch()
    with pytest.raises(FolderRefused, match="among somebody's files"):
        open_folder(tmp_path, create=True)
    assert tmp_path.stat().st_mode & 0o777 == 0o775


def test_somebody_elses_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever owns it may give it away."""
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    with pytest.raises(FolderRefused, match="belongs to user"):
        open_folder(tmp_path, create=False)


@pytest.mark.parametrize(("kind", "refused"), [("nfs4", True), ("fuse.sshfs", True), ("cifs", True), ("ext4", False), ("fuseblk", False)])
def test_a_network_filesystem_is_refused_unless_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, refused: bool) -> None:
    """Locks and fsync mean nothing there. The mount that counts is the innermost one."""
    root = tmp_path / "with space"
    root.mkdir()
    mounts = tmp_path / "mountinfo"
    point = str(tmp_path).replace(" ", "\\040") + "/with\\040space"
    mounts.write_text(
        "22 27 0:21 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
        f"23 27 0:22 / {point} rw,relatime shared:2 master:1 - {kind} server:/x rw\n"
        "24 27 0:23 / /elsewhere rw - nfs x rw\n"
    )
    monkeypatch.setattr(folder, "MOUNTS", mounts)
    if refused:
        with pytest.raises(FolderRefused, match=kind):
            open_folder(root, create=True)
        assert not list(root.iterdir())
    open_folder(root, create=True, force=refused).shut()


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("a\u2028b", b"a\xe2\x80\xa8b"),
        ("a\x1cb\x85\x0c", b"a\x1cb\xc2\x85\x0c"),
        ("a\tb\nc\\d#", b"a\\011b\\012c\\134d\\043"),
        ("not \udcff utf-8", b"not\\040\xff\\040utf-8"),
    ],
)
@pytest.mark.parametrize("before", [True, False])
def test_a_mount_point_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, written: bytes, before: bool) -> None:
    """As the kernel writes it: neither does one end the list in its midst, nor is a network filesystem behind one overlooked."""
    mounts = tmp_path / "mountinfo"
    monkeypatch.setattr(folder, "MOUNTS", mounts)
    at, other = os.fsencode(tmp_path) + b"/" + written, b"24 27 0:23 / /elsewhere rw - ext4 x rw"
    line = b"23 27 0:22 / " + at + b" rw,relatime - nfs4 server:/x rw"
    mounts.write_bytes(b"\n".join([line, other] if before else [other, line]) + b"\n")
    assert folder._filesystem_of(tmp_path / name / "queue") == "nfs4"
    assert folder._filesystem_of(Path("/elsewhere/queue")) == "ext4"


def test_a_folder_above_in_which_anybody_may_rename_is_named(tmp_path: Path) -> None:
    """Writable by all, and not sticky as /tmp is. What a group may write to is its own affair."""
    above, root = tmp_path / "a", tmp_path / "a" / "b" / "queue"
    root.mkdir(parents=True)
    assert renamable_in(root) is None
    for mode, named in ((0o777, True), (0o757, True), (0o1777, False), (0o775, False)):
        above.chmod(mode)
        assert renamable_in(root) == (above if named else None)
    root.parent.chmod(0o777)
    above.chmod(0o777)
    assert renamable_in(root) == root.parent
    (tmp_path / "link").symlink_to(root)
    assert renamable_in(tmp_path / "link") == root.parent


def test_where_the_system_does_not_list_its_mounts_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS has no such list."""
    monkeypatch.setattr(folder, "MOUNTS", tmp_path / "none")
    open_folder(tmp_path, create=True).shut()


def test_settings_may_be_protected_from_being_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their mode, or as a file of root that all may read: they are only read. Nobody could serve such a queue or publish to it."""
    (tmp_path / CONFIG_FILE).write_text("attempts_max = 7\n")
    files = open_folder(tmp_path, create=True)
    really = os.open

    def protected(name: str, flags: int, *mode: int, **where: int) -> int:
        if name == CONFIG_FILE and flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return really(name, flags, *mode, **where)

    monkeypatch.setattr(os, "open", protected)
    assert load_config(files).attempts_max == 7
    files.shut()


def test_settings_come_from_the_folder() -> None:
    """The defaults where there are none; an error names the file."""
    files = MemoryFiles()
    assert load_config(files) == Config()
    files.put(CONFIG_FILE, b"lease_ms = 5_000\n")
    assert load_config(files).lease_ms == 5_000
    files.put(CONFIG_FILE, b'x = "\xff"')
    with pytest.raises(InvalidConfig, match="UTF-8"):
        load_config(files)
    files.put(CONFIG_FILE, b"leese_ms = 1")
    with pytest.raises(InvalidConfig, match="leese_ms"):
        load_config(files)


@pytest.mark.parametrize("name", ["thesis.tex", "data.json", "Makefile"])
def test_a_queue_is_not_begun_among_somebodys_files(tmp_path: Path, name: str) -> None:
    """A mistyped path is told, and nothing is written there."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(FolderRefused, match=name) as caught:
        open_folder(tmp_path, create=True)
    assert "empty" in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["queue.json", "queue.lock", "published-000000000001-00000001.jsonl", "queue.json.draft"])
def test_a_queue_stays_one_whatever_lies_beside_it(tmp_path: Path, name: str) -> None:
    """Once there is a file of ours, others are no reason to refuse it."""
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / name).touch()
    open_folder(tmp_path, create=True).shut()


def test_what_describes_a_folder_is_in_nobodys_way(tmp_path: Path) -> None:
    """A README, settings, dot files and folders may be there before the queue is."""
    for name in (".gitignore", ".DS_Store", "README.md", "README", CONFIG_FILE):
        (tmp_path / name).touch()
    (tmp_path / "scripts").mkdir()
    open_folder(tmp_path, create=True).shut()


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("name", ["archive", "previous"])
def test_a_link_in_place_of_a_folder_is_refused(tmp_path: Path, name: str, create: bool) -> None:
    """What belongs in it would be written elsewhere."""
    root, elsewhere = tmp_path / "q", tmp_path / "elsewhere"
    root.mkdir(0o700)
    elsewhere.mkdir()
    (root / name).symlink_to(elsewhere)
    with pytest.raises(FolderRefused, match=name):
        open_folder(root, create=create)
    assert not list(elsewhere.iterdir())


def test_a_denial_is_explained_by_the_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's folder is refused in the same words by what only looks; of one behind such a folder no more is known."""
    denied = PermissionError(13, "Permission denied")
    us = os.geteuid()
    monkeypatch.setattr("os.geteuid", lambda: us + 1)
    assert str(folder.denied_by(tmp_path, denied)) == f"{tmp_path} belongs to user {us}, not to us ({us + 1})"

    def deny(*_: object) -> None:
        raise denied

    with monkeypatch.context() as within:
        within.setattr("os.stat", deny)
        said = folder.denied_by(tmp_path, denied)
    assert said is not None
    assert (str(said), said.hint) == (f"{tmp_path} cannot be reached: permission denied", "run as its owner, or use another folder")


def test_a_denial_is_explained_by_the_mode_alone(tmp_path: Path) -> None:
    """Of a folder that has gone meanwhile, or whose mode denies its owner nothing, or of another error, there is nothing to say."""
    denied = PermissionError(13, "Permission denied")
    tmp_path.chmod(0o500)
    said = folder.denied_by(tmp_path, denied)
    tmp_path.chmod(0o700)
    assert "its mode is 0500" in str(said)
    assert folder.denied_by(tmp_path, denied) is None
    assert folder.denied_by(tmp_path / "gone", denied) is None
    assert folder.denied_by(tmp_path, FileNotFoundError()) is None
