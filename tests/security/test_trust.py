"""S7, S14, S16: who is let in, and that it rests on no secret; what is printed; and what a checksum is no proof of."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from cli.calls import NOW_MS, a_queue_of, call, ended, task
from jsonqueue.broker.loop import PEER_PENDING_MAX_BYTES
from jsonqueue.broker.manager import BrokerManager
from jsonqueue.broker.narration import Narration
from jsonqueue.broker.reception import _GUESTS_MAX
from jsonqueue.channel import registration
from jsonqueue.channel.registration import SOCKET_NAME, Listener, operate
from jsonqueue.client.children import GRACE_S
from jsonqueue.client.publisher import Publisher
from jsonqueue.config import Config
from jsonqueue.errors import BadFrame, CorruptQueue
from jsonqueue.event import EventOwner, decoder_for
from jsonqueue.storage.recovery import inspect
from jsonqueue.task import Outcome, TaskStatus

# ── who is let in ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_there_is_no_secret_to_be_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A broker's command line says what it is and which folder it serves; its environment is the manager's; nothing that a client would
    have to know stands there, in the folder or in the log."""
    caplog.set_level(logging.DEBUG)
    with BrokerManager(tmp_path / "queue") as manager, Publisher(manager) as publisher:
        publisher.publish(1)
        pids = [broker.pid for broker in operate(manager.queue_dir, "status").status.brokers]
        for pid in pids:
            _, _, _, name, folder, fd, _ = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            assert name.startswith("jsonqueue-")
            assert folder == str(tmp_path / "queue")
            assert fd.isdecimal()
            theirs = dict(pair.split(b"=", 1) for pair in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if pair)
            # (A readline that was imported tells C code of the terminal's size, behind Python's back.)
            assert {key for key in theirs if theirs[key] != os.environb.get(key)} <= {b"LINES", b"COLUMNS"}
        names = {path.name for path in (tmp_path / "queue").rglob("*")}
        assert not {name for name in names if re.search("token|secret|key|auth|cookie", name)}
    assert not re.search(r"\b[0-9a-f]{32,}\b", caplog.text)


class _Elsewhere:
    """A connection as macOS and the BSDs know it: ``struct xucred``, asked for at level 0, option 1 (what ``getpeereid`` asks)."""

    def __init__(self, uid: int) -> None:
        self.uid = uid
        self.asked: list[tuple[int, int]] = []

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        self.asked.append((level, option))
        return struct.pack("IIh2xI15I", 0, self.uid, 1, *[20] * 16)[:size]


def test_where_there_is_no_peercred_the_uid_is_asked_for_as_getpeereid_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its pid nobody tells there."""
    monkeypatch.delattr(socket, "SO_PEERCRED")
    connection = _Elsewhere(501)
    assert registration._peer(connection) == (None, 501)  # type: ignore[arg-type]
    assert connection.asked == [(0, 1)]


def test_who_cannot_be_asked_is_not_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel tells nothing of a peer, it is nobody: hung up on."""
    listener = Listener(tmp_path)

    def silent(connection: socket.socket) -> tuple[int, int]:
        raise OSError(92, "Protocol not available")

    monkeypatch.setattr(registration, "_peer", silent)
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(tmp_path / SOCKET_NAME))
        assert listener.accept() is None
        caller.settimeout(5)
        assert caller.recv(1) == b""
    listener.close()


# ── what is printed ──────────────────────────────────────────────────────────────────────────────────────────────────

EVIL = {
    "colour": "\x1b[31mred",
    "clear": "\x1b[2J\x1b[H",
    "title": "\x1b]0;title\x07",
    "clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "clipboard, ended otherwise": "\x1b]52;c;ZXZpbA==\x1b\\",
    "link": "\x1b]8;;http://evil\x1b\\here\x1b]8;;\x1b\\",
    "answer back": "\x1b[6n\x05\x1b[c",
    "device": "\x1bP+q544e\x1b\\",
    "8 bit": "\x9b2J\x9d52;c;x\x9c",
    "line": "ok\r\nError: forged",
    "return": "ok\rError: forged",
    "other lines": "a\x0bb\x0cc\x85d\u2028e\u2029f",
    "backspace": "rm -rf /" + "\x08" * 8 + "ls",
    "delete": "a\x7fb\x00c",
    "reversed": "\u202egnp.exe\u2066x\u2069",
    "invisible": "a\u200bb\u2060c\ufeffd",
    "markup": "[bold red]x[/][link=file:///etc]y[/link]",
}
_OURS = re.compile("\x1b\\[(0|1|2|1;2)m")
"""How a terminal that wants no colours is told what stands out. Nothing of the kind goes into a pipe."""
COMMANDS: list[list[str]] = [
    ["list"], ["list", "--json"], ["show", "evil"], ["show", "evil", "--json"], ["result", "evil"], ["status"], ["status", "--json"],
    ["dead", "list"], ["dead", "show", "lost"], ["dead", "list", "--json"], ["verify"],
]  # fmt: skip


@pytest.mark.parametrize("name", EVIL)
def test_no_text_from_a_task_acts_upon_a_terminal(tmp_path: Path, name: str) -> None:
    """Payload, key, result, reason, error: whichever command shows it, on a terminal or into a pipe."""
    evil = EVIL[name]
    done = task(
        "evil", TaskStatus.COMPLETED, data={"x": evil, evil: [evil]}, result={evil: evil}, finished_ms=NOW_MS, reason=evil,
        history=(ended(Outcome.FAILED, error=evil), ended(Outcome.COMPLETED, attempt=2)),
    )  # fmt: skip
    lost = task("lost", TaskStatus.DEAD, data=evil, reason=evil, history=(ended(Outcome.FAILED, error=f"Traceback:\n{evil}\n"),), number=2)
    with a_queue_of(tmp_path, done, lost) as queue:
        for command in COMMANDS:
            for terminal in (False, True):
                called = call("--queue", str(queue), *command, terminal=terminal, environment={"NO_COLOR": "1"})
                for line in (called.out + called.err).split("\n"):
                    assert (_OURS.sub("", line) if terminal else line).isprintable(), (command, terminal, line)
                    assert not line.startswith("Error: forged"), (command, terminal)
                if "--json" in command:
                    assert all(json.loads(line) for line in called.out.splitlines() if line.startswith("{") and line.endswith("}"))


@pytest.mark.parametrize("name", EVIL)
def test_no_text_from_a_client_acts_upon_the_log(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """What the brokers quote of a frame, and what the manager says of whom it turned away, is plain text on one line."""
    evil = json.dumps({EVIL[name]: EVIL[name], "type": EVIL[name]}, ensure_ascii=False).encode()
    for owner in (EventOwner.PUBLISHER, EventOwner.CONSUMER, EventOwner.CALLER):
        for frame in (evil, b'{"type":"look","id":"a","request":1,' + evil[1:], evil.replace(b"type", b"owner")):
            with pytest.raises(BadFrame) as caught:
                decoder_for(owner)(frame)
            assert str(caught.value).isprintable()
    for frame in (evil, evil.replace(b'"type"', b'"owner"'), b'{"type":"register",' + evil[1:]):
        with pytest.raises(BadFrame) as caught:
            registration._decode_request(frame)
        Narration("queue").visitor_refused(str(caught.value))
    assert all(message.isprintable() for message in caplog.messages)
    assert len(caplog.messages) == 3


# ── what a checksum is no proof of ───────────────────────────────────────────────────────────────────────────────────


def _forge(path: Path, *, with_checksum: bool) -> None:
    """Another payload in queue.json, with or without the checksum that fits."""
    body = path.read_bytes().replace(b'"data":"mine"', b'"data":"evil"')
    body, name, foot = body.rpartition(b',"checksum":"')
    path.write_bytes(body + name + (b'%08x"}\n' % zlib.crc32(body) if with_checksum else foot))


@pytest.mark.parametrize("with_checksum", [False, True])
def test_a_checksum_finds_accidents_and_no_forger(tmp_path: Path, with_checksum: bool) -> None:
    """CRC-32 is no signature, as SECURITY.md says: whoever may write the files can make new ones that fit."""
    with a_queue_of(tmp_path, task("a", data="mine")) as queue:
        _forge(queue / "queue.json", with_checksum=with_checksum)
        if with_checksum:
            assert _payload_of(queue, "a") == "evil"
        else:
            with pytest.raises(CorruptQueue):
                _payload_of(queue, "a")


def _payload_of(queue: Path, task_id: str) -> Any:
    return json.loads(bytes(inspect(queue).state.tasks[task_id].data))


def test_the_figures_of_the_page_are_those_of_the_code() -> None:
    """Whoever changes one of them changes what was promised."""
    page = (Path(__file__).resolve().parents[2] / "SECURITY.md").read_text()
    assert f"| {registration._REQUEST_MAX_BYTES // 1024} KiB and one request before they are known, " in page
    assert (registration.HANDSHAKE_MS, "two seconds from the call" in page) == (2_000, True)
    assert f", {_GUESTS_MAX} at a time." in page
    assert f"`payload_max_bytes` and {(Config().frame_max_bytes - Config().payload_max_bytes) // 2**20} MiB" in page
    assert f"A Pipe keeps at most {PEER_PENDING_MAX_BYTES // 2**20} MiB (or one answer)" in page
    assert (GRACE_S, "SIGTERM at its time limit or when its task was cancelled, a second later SIGKILL" in page) == (1, True)


def test_the_pages_say_so() -> None:
    top = Path(__file__).resolve().parents[2]
    for page in ("SECURITY.md", "docs/format.md"):
        assert re.search(r"CRC.{0,80}no\s+signature", (top / page).read_text(), re.DOTALL), page
