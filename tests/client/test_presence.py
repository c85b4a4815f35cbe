"""What a client is told when it finds no broker: who is there all the same, and where nobody ever will be."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from jsonqueue.channel import registration
from jsonqueue.client.caller import Caller
from jsonqueue.client.consumer import Consumer
from jsonqueue.client.handle import TaskHandle
from jsonqueue.client.presence import register
from jsonqueue.client.publisher import Publisher
from jsonqueue.errors import BrokerUnavailable, FolderRefused
from jsonqueue.event import EventOwner
from jsonqueue.storage import folder
from jsonqueue.storage.locks import hold
from jsonqueue.task import AnyTask

SILENT = {"cause": "the manager did not answer in time", "silent": True}


def nothing(task: AnyTask) -> None: ...


@pytest.fixture
def queue(tmp_path: Path) -> Path:
    """With a task in it."""
    with Publisher(tmp_path / "q") as publisher:
        publisher.publish(1, id="a")
    return tmp_path / "q"


@pytest.mark.parametrize(
    ("told", "what", "said"),
    [
        (SILENT, "BrokerManager", "does not answer (is it suspended?)"),
        ({}, "BrokerManager", "is stopping"),
        ({}, "jsonqueue repair", "is not done yet"),
        ({"cause": "the brokers are stopping"}, "BrokerManager", "cannot serve this: the brokers are stopping"),
    ],
)
def test_a_manager_that_does_not_answer_is_not_called_absent(
    queue: Path, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], what: str, said: str
) -> None:
    """To start another one would lead nowhere."""
    monkeypatch.setattr(registration, "connect", mock.Mock(side_effect=lambda *_, **__: raise_(BrokerUnavailable("q", **told))))
    asking: list[Callable[[], object]] = [
        lambda: Publisher(queue, timeout=0).publish(2),
        TaskHandle(queue, "a", caller=Caller(queue)).cancel,
        TaskHandle(queue, "a", caller=Caller(queue)).result,
    ]
    with hold(queue, "queue", what=what), hold(queue, "published", what=what):
        for ask in asking:
            with pytest.raises(BrokerUnavailable) as caught:
                ask()
            assert str(caught.value) == f"process {os.getpid()} ({what}) holds {queue}, and {said}"
            assert caught.value.hint.startswith("wait until it goes on")
            assert (caught.value.cause, caught.value.silent) == (told.get("cause", ""), told.get("silent", False))


def raise_(error: Exception) -> None:
    raise error


def test_where_nobody_is_it_says_so(queue: Path) -> None:
    with pytest.raises(BrokerUnavailable, match="no broker is running"):
        TaskHandle(queue, "a").cancel()


def test_a_file_is_no_queue(tmp_path: Path) -> None:
    """To wait there for a broker would be in vain."""
    (tmp_path / "file").touch()
    asking: list[Callable[[], object]] = [
        lambda: Publisher(tmp_path / "file").publish(1),
        Consumer(tmp_path / "file", nothing).run,
        TaskHandle(tmp_path / "file", "a").status,
        lambda: folder.open_folder(tmp_path / "file", create=True),
    ]
    for ask in asking:
        with pytest.raises(FolderRefused, match="is not a folder") as caught:
            ask()
        assert caught.value.hint.startswith("name the folder")
    with pytest.raises(FolderRefused, match="cannot be made") as caught:
        Publisher(tmp_path / "file" / "q").publish(1)
    assert caught.value.hint == f"{tmp_path / 'file'} is a file"


@pytest.fixture
def denied(queue: Path) -> Any:
    queue.chmod(0o500)
    yield queue
    queue.chmod(0o700)


def test_a_folder_whose_mode_forbids_it_is_named_to_who_calls(denied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do. The superuser, to whom no mode forbids anything, is denied by the test."""
    monkeypatch.setattr(registration, "_address", mock.Mock(side_effect=PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(FolderRefused, match="cannot be used: permission denied, its mode is 0500") as caught:
        register(denied, EventOwner.CONSUMER, timeout=1)
    assert caught.value.hint == f"chmod u+rwx {denied}"
    denied.chmod(0o700)
    with pytest.raises(BrokerUnavailable, match="permission denied"):
        register(denied, EventOwner.CONSUMER, timeout=1)


PLACES = ["storage.folder.RealFiles", "storage.files.RealFiles.list", "client.direct.hold"]


@pytest.mark.parametrize("place", PLACES)
def test_a_folder_whose_mode_forbids_it_is_named_to_who_appends(denied: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr(f"jsonqueue.{place}", mock.Mock(side_effect=PermissionError(errno.EACCES, "Permission denied")))
    with pytest.raises(FolderRefused, match="cannot be used: permission denied, its mode is 0500"):
        Publisher(denied).publish(1)
