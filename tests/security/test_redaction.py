"""S14: what `redact_keys` takes out of what commands print, and that it changes nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.calls import NOW_MS, a_queue_of, call, task
from jsonqueue.broker.manager import BrokerManager
from jsonqueue.cli.redaction import REDACTED, Redaction
from jsonqueue.config import CONFIG_FILE, Config, checked, parse_config
from jsonqueue.errors import InvalidConfig
from jsonqueue.task import TaskStatus

CANARY = "canary-7Hq"
SHOWN = [
    "list",
    "list --newest",
    "list --json",
    "show a",
    "show a --json",
    "show d",
    "dead list",
    "dead list --json",
    "dead show d",
    "show p",
]


def _queue(folder: Path) -> Any:
    payload = {"user": "ann", "Token": CANARY, "deep": [[{"password": {"it": [CANARY]}, "x": 1.50}], {"token": None}]}
    return a_queue_of(
        folder,
        task("a", TaskStatus.COMPLETED, data=payload, result={"token": [CANARY], "ok": True}, finished_ms=NOW_MS),
        task("d", TaskStatus.DEAD, data=payload, reason="it failed", number=2),
        task("p", data=payload, number=3),
    )


def _redact(queue: Path, keys: str) -> None:
    (queue / CONFIG_FILE).write_text(f"redact_keys = {keys}\n")


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("command", SHOWN)
def test_no_command_that_shows_a_payload_shows_what_is_to_be_redacted(tmp_path: Path, command: str, terminal: bool) -> None:
    """For a person, a pipe or a program; in payloads and results; and without the setting all of it is shown."""
    with _queue(tmp_path / "queue") as queue:
        before = (queue / "queue.json").read_bytes()
        plain = call("--queue", str(queue), *command.split(), terminal=terminal, columns=400)
        _redact(queue, '["token", "PASSWORD"]')
        redacted = call("--queue", str(queue), *command.split(), terminal=terminal, columns=400)
        assert (plain.status, redacted.status) == (0, 0), redacted.err
        assert CANARY not in redacted.out + redacted.err
        if command != "dead list":  # whose one line says why it died
            assert CANARY in plain.out
            assert REDACTED in redacted.out
        assert (queue / "queue.json").read_bytes() == before


def test_a_result_that_is_asked_for_is_given(tmp_path: Path) -> None:
    """It goes to whoever needs it, a program mostly."""
    with _queue(tmp_path / "queue") as queue:
        _redact(queue, '["token"]')
        assert json.loads(call("--queue", str(queue), "result", "a").out) == {"token": [CANARY], "ok": True}


def _shown(data: Any, *keys: str) -> Any:
    return json.loads(bytes(Redaction(keys).task(task("a", data=data)).data))


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ({"k": 1}, {"k": REDACTED}),
        ({"k": {"k": [1]}}, {"k": REDACTED}),
        ([[[{"a": {"K": None}}]]], [[[{"a": {"K": REDACTED}}]]]),
        ({"kk": "k", "a": ["k"]}, {"kk": "k", "a": ["k"]}),
        ("k", "k"),
        (None, None),
        ({}, {}),
        ({"ß": 1, "straße": 2}, {"ß": REDACTED, "straße": 2}),
    ],
)
def test_a_key_is_found_at_every_depth_and_is_a_whole_key(data: Any, shown: Any) -> None:
    """A string that reads like it is none."""
    assert _shown(data, "k", "SS") == shown


def test_a_key_that_is_spelled_with_escapes_is_found(tmp_path: Path) -> None:
    """JSON has more than one way to write it; and what is not redacted is shown to the digit."""
    line = b'{"id":"a","data":{"\\u006b":1,"n":1.50,"big":1e400},"result":{"k":2}}'
    assert Redaction(("k",)).line(line) == b'{"id":"a","data":{"k":"[redacted]","n":1.50,"big":1e400},"result":{"k":"[redacted]"}}'


def test_a_tasks_own_members_are_no_payload() -> None:
    """A key that is called as one of them takes none of them away."""
    line = b'{"id":"a","number":1,"data":{"id":5},"reason":"r"}'
    assert Redaction(("id", "reason", "data")).line(line) == b'{"id":"a","number":1,"data":{"id":"[redacted]"},"reason":"r"}'
    assert Redaction(()).line(line) is line


def test_who_cannot_read_what_is_to_be_hidden_shows_nothing(tmp_path: Path) -> None:
    """A settings file with a mistake in it says so, in place of the payloads."""
    with _queue(tmp_path / "queue") as queue:
        _redact(queue, '"token"')
        for command in SHOWN:
            called = call("--queue", str(queue), *command.split())
            assert (called.status, CANARY in called.out) == (78, False)
            assert 'redact_keys is \'token\', and must be a list of strings, such as ["password", "token"]' in called.err


def test_it_is_a_setting_of_the_folder_alone(tmp_path: Path) -> None:
    """Given for one run it would count for nothing, since no broker prints a payload: it is refused."""
    config = checked(parse_config('redact_keys = ["token"]'))
    assert config.redact_keys == ("token",)
    queue = tmp_path / "queue"
    manager = BrokerManager(queue, Config(redact_keys=("token",)))
    with pytest.raises(InvalidConfig, match="redact_keys cannot be set for one run") as caught:
        manager.start()
    assert CONFIG_FILE in caught.value.hint
    assert call("serve", "--queue", str(queue), "--set", 'redact_keys=["token"]').status == 78


@pytest.mark.processes
def test_a_run_with_other_settings_keeps_what_is_redacted(tmp_path: Path) -> None:
    """`--set` lays one setting over those of the folder, this one included."""
    queue = tmp_path / "queue"
    queue.mkdir(0o700)
    _redact(queue, '["token"]')
    with BrokerManager(queue, Config(lease_ms=5_000, redact_keys=("token",))) as manager:
        assert manager.status().config.redact_keys == ("token",)
