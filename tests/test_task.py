"""A task on its way through JSON."""

from __future__ import annotations

import msgspec
import pytest

from jsonqueue.task import AnyTask, StoredTask

LINE = b'{"id":"a","number":1,"status":"completed","published_ms":1,"data":%b,"result":%b}'
VALUES = [b"0", b'""', b"[]", b"null", b'"x"', b'{"a":1.50}', b"123456789012345678901234567890"]


@pytest.mark.parametrize("value", VALUES)
def test_payload_and_result_are_stored_as_they_were_written(value: bytes) -> None:
    """Any JSON value, falsy ones and large figures too, comes out of a file byte by byte as it went in."""
    stored = msgspec.json.decode(LINE % (value, value), type=StoredTask)
    assert (bytes(stored.data), bytes(stored.result or b"")) == (value, value)
    assert msgspec.json.encode(stored) == LINE % (value, value)


def test_a_task_without_a_result_has_none() -> None:
    """In a broker's hands and in a user's; and nothing of it is written."""
    line = b'{"id":"a","number":1,"status":"pending","published_ms":1,"data":0}'
    for kind in (StoredTask, AnyTask):
        task = msgspec.json.decode(line, type=kind)
        assert task.result is None
        assert msgspec.json.encode(task) == line
