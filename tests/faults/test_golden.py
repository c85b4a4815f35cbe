"""Files of every format version there ever was are read; files of one that is still to come are refused, and left alone."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from zlib import crc32

import pytest
from msgspec import json

from faults.life import Ledger, Life
from jsonqueue.config import Config
from jsonqueue.errors import UnsupportedFormat
from jsonqueue.storage.checkpoint import final_checkpoint
from jsonqueue.storage.files import RealFiles
from jsonqueue.storage.log import LogKind, LogWriter
from jsonqueue.storage.queue_file import PREVIOUS, QUEUE
from jsonqueue.storage.recovery import load_state
from jsonqueue.storage.repair import mend, verify
from jsonqueue.storage.segments import segments_of

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
VERSIONS = sorted(path.name for path in GOLDEN.glob("version-*") if path.is_dir())


@pytest.fixture
def queue(tmp_path: Path, request: pytest.FixtureRequest) -> RealFiles:
    root = tmp_path / "queue"
    shutil.copytree(GOLDEN / getattr(request, "param", VERSIONS[-1]), root)
    (root / "archive").mkdir(exist_ok=True)
    for path in [root, *root.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
    return RealFiles(root)


def _contents(files: RealFiles) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files.root.rglob("*") if path.is_file()}


@pytest.mark.parametrize("queue", VERSIONS, indirect=True)
def test_every_version_is_read(queue: RealFiles, request: pytest.FixtureRequest) -> None:
    """What it held then, it holds now; verify finds nothing; brokers go on with it."""
    version = request.node.callspec.params["queue"]
    expected = json.decode((GOLDEN / f"{version}.tasks.json").read_bytes())
    assert json.decode(json.encode(list(load_state(queue).state.tasks.values()))) == expected
    report = verify(queue.root)
    assert report.ok
    assert report.tasks == len(expected)
    ledger = Ledger()
    life = Life(queue, ledger.hear, generation=5)
    life.start()
    life.publish("new")
    life.heal([])
    life.stop(after_ms=1)
    assert "new" in ledger.completed


def _newer_queue(files: RealFiles) -> None:
    path = files.root / QUEUE
    data = path.read_bytes().replace(b'"version":1', b'"version":2', 1)
    members = data[: data.index(b',"head":"')]
    data = re.sub(rb'"head":"\w{8}"', b'"head":"%08x"' % crc32(members), data, count=1)
    body = data[: data.rindex(b',"checksum"')]
    path.write_bytes(body + b',"checksum":"%08x"}\n' % crc32(body))


def _newer_line(files: RealFiles) -> None:
    path = files.root / segments_of(files, LogKind.PUBLISHED)[-1].name
    first, second, *rest = path.read_bytes().split(b"\n")
    fixed = b"03" + second[8:64]
    path.write_bytes(b"\n".join([first, b'{"h":"' + fixed + b"%08x" % crc32(fixed) + second[72:], *rest]))


@pytest.mark.parametrize(("change", "version"), [(_newer_queue, 2), (_newer_line, 3)])
def test_a_newer_version_is_refused_with_what_to_do(queue: RealFiles, change, version: int) -> None:  # type: ignore[no-untyped-def]
    """By brokers, by whoever looks, by a clean stop and by repair, even one that accepts loss; not a byte is changed."""
    change(queue)
    before = _contents(queue)
    with pytest.raises(UnsupportedFormat) as refusal:
        load_state(queue)
    assert f"version {version}" in str(refusal.value)
    assert "upgrade" in refusal.value.hint
    with pytest.raises(UnsupportedFormat):
        [LogWriter.open(queue, kind) for kind in LogKind]
    with pytest.raises(UnsupportedFormat):
        final_checkpoint(queue, config=Config(), at_ms=1)
    report = mend(queue, accept_loss=True, accept_edit=True, at_ms=1)
    assert [finding.kind for finding in report.findings if not finding.harmless][:1] == ["newer"]
    assert {name: sha for name, sha in _contents(queue).items() if name in before} == before
    queue.shut()


@pytest.mark.parametrize("bit", range(8))
def test_a_damaged_version_is_damage(queue: RealFiles, bit: int) -> None:
    """One wrong bit in queue.json's version is no newer jsonqueue: it costs nothing, as any other."""
    path = queue.root / QUEUE
    expected = json.encode(list(load_state(queue).state.tasks.values()))
    data = bytearray(path.read_bytes())
    data[data.index(b'"version":') + 10] ^= 1 << bit
    path.write_bytes(bytes(data))
    assert (queue.root / PREVIOUS / QUEUE).exists()
    report = mend(queue, accept_loss=False, accept_edit=False, at_ms=1)
    assert report.ok, report.findings
    assert json.encode(list(load_state(queue).state.tasks.values())) == expected
