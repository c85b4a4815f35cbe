"""Planted bugs: one-line faults put into a copy of the source, and the harness that must find each.

A harness that lets its bug pass is as red as a test that fails. ``python -m faults.planted`` runs all of them (or ``--only a,b``), and with
``--table FILE`` writes what it found as the table in docs/track-record.md. The production code itself knows nothing of this.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jsonqueue
from faults.lanes import TESTS

__all__ = ["BUGS", "HARNESSES", "Bug", "Verdict", "main", "try_out"]

SOURCE = Path(jsonqueue.__file__).resolve().parent
LIMIT_S = 60.0
_OWN_FAULT = r"^(IndexError|StopIteration|NameError|ModuleNotFoundError|SyntaxError)\b"
"""What a broken harness, or a broken patch, would die of: no bug was found then."""

_PYTEST = ("pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--timeout=55", "--no-header")
HARNESSES: dict[str, tuple[str, ...]] = {
    "states": ("faults.states",),
    "kill": ("faults.kill", "--random", "100"),
    "bits": ("faults.damage", "--only", "1", "--size", "6000", "--thorough", "299"),
    "snapshot bits": ("faults.damage", "--only", "2", "--size", "6000", "--thorough", "499", "--head", "17"),
    "stale files": ("faults.damage", "--only", "4", "--size", "12000"),
    "wild damage": ("faults.damage", "--only", "5", "--size", "6000", "--wild", "480"),
    "wild reading": ("faults.damage", "--only", "5", "--wild", "20000", "--whole", "100000"),
    "golden": (*_PYTEST, "faults/test_golden.py"),
    "errors": ("faults.errors", "--stride", "100"),
    "full disk": (*_PYTEST, "faults/test_full_disk.py"),
    "small worlds": ("simulation.small_worlds", "--states-max", "5000"),
    "two checkpoints": ("simulation.small_worlds", "--only", "two checkpoints"),
    "core": (*_PYTEST, "core"),
    "race": ("faults.race",),
    "locks": (*_PYTEST, "storage/test_files.py", "storage/test_locks.py", "e2e/test_lost_locks.py"),
    "lost files": (*_PYTEST, "storage/test_lost_files.py", "broker/test_relaxed.py", "e2e/test_lost_files.py"),
    "deaf": (*_PYTEST, "broker/test_loop.py", "e2e/test_liveness.py", "-k", "dropped or the_cap or more_than"),
    "want": (*_PYTEST, "broker/test_want.py"),
    "slow disk": (*_PYTEST, "broker/test_slow_disk.py", "-k", "takes_to_load"),
    "no memory": (*_PYTEST, "broker/test_no_memory.py", "broker/test_checkpointing.py", "-k", "memory"),
    "recovery": (*_PYTEST, "storage/test_recovery.py", "storage/test_log.py"),
    "lines": (*_PYTEST, "storage/test_codec.py"),
    "repair": (*_PYTEST, "storage/test_repair.py"),
    "checkpoints": (*_PYTEST, "storage/test_checkpoint.py"),
}
"""Name → module and arguments, from the folder of the tests."""


class Bug(NamedTuple):
    name: str
    """What somebody might have done."""
    harness: str
    """Which finds it."""
    file: str
    old: str
    new: str
    hole: str = ""
    """The protocol's own name for it, if it has one."""


class Verdict(NamedTuple):
    bug: Bug
    found: bool
    seconds: float
    words: str


_SYNC = "            self._log.sync()  # Nothing below this line runs until the disk has it.\n"
BUGS = (
    # ── brokers ──────────────────────────────────────────────────────────────────────────────────────────────────────
    Bug("publish acknowledged before its fsync", "states", "broker/publisher_broker.py", _SYNC, "            pass\n"),
    Bug("completion acknowledged before its fsync", "states", "broker/consumer_broker.py",
        'if self._config.durability == "power-cut":', 'if self._config.durability == "":'),
    Bug("a refused publish stays known, so that its retry is a duplicate", "states", "broker/publisher_broker.py",
        "                accepted = []\n", "                pass\n"),
    Bug("refused after it was stored, for want of room to rotate", "full disk", "broker/publisher_broker.py",
        "            self.rotate()\n", "            self._log.rotate()\n"),
    Bug("a broker ends when there is no room to rotate", "full disk", "broker/consumer_broker.py",
        "self._reserve.lend(lambda: self._log.append(records, at_ms=at_ms, after=self._read), wanted=lambda: len(records))",
        "self._log.append(records, at_ms=at_ms, after=self._read)"),
    Bug("publishers may take the last room", "full disk", "broker/publisher_broker.py",
        "self._files.free_bytes() >= self._config.disk_reserve_bytes", "True"),
    Bug("a turn that found no room is forgotten", "full disk", "broker/consumer_broker.py",
        "self._unwritten = (turn, at_ms)", "self._unwritten = None"),
    Bug("a delivery that waited for room is leased from when it was decided", "full disk", "broker/consumer_broker.py",
        "dispatcher.pushed_late(turn, overdue, now)", "pass"),
    Bug("a delivery that waited for room goes out after its deadline", "full disk", "broker/consumer_broker.py",
        "turn.hold_back_overdue(now.wall_ms)", "[]"),
    Bug("a delivery whose write took long goes out as if it had not", "full disk", "broker/consumer_broker.py",
        ">= _LATE_MS:", ">= 1 << 62:"),
    Bug("nobody looks whether room has returned", "full disk", "broker/publisher_broker.py",
        "if now_ms - self._looked_ms >= _ROOM_LOOK_MS:", "if self._room:"),
    # ── logs ─────────────────────────────────────────────────────────────────────────────────────────────────────────
    Bug("a started log is not synced before it is used", "states", "storage/log.py",
        "            self._files.sync(handle)\n            self._files.rename(draft", "            self._files.rename(draft", "H3, H4"),
    Bug("a started log's name is not synced", "states", "storage/log.py",
        "(draft, name)\n            self._files.sync_folder()\n", "(draft, name)\n"),
    Bug("there is word of a log before there is the log", "states", "storage/log.py",
        "        writer._begin(source, end)\n        try:\n",
        "        writer._mark_begun(header)\n        writer._begin(source, end)\n        try:\n"),
    Bug("a log that is gone after a clean stop is not missed", "recovery", "storage/log.py",
        "        if header.closed and max(begun_of", "        if not header.closed and max(begun_of"),
    Bug("that a queue had its first queue.json is not known", "repair", "storage/queue_file.py",
        "    return any(firsts - {", "    return any(set() and {"),
    Bug("a rotated segment's name is not synced", "states", "storage/log.py",
        "            self._files.sync(handle)\n            self._files.sync_folder()", "            self._files.sync(handle)"),
    Bug("numbers go on from the log only, not from queue.json", "kill", "storage/log.py",
        "    end = start = header.through(kind)\n", "    start = header.through(kind)\n    end = End(0, 0, 0, None)\n", "H8"),
    Bug("the epoch goes on from the log only, not from queue.json", "kill", "storage/log.py",
        "epoch = 1 + max([header.epoch(kind), *", "epoch = 1 + max([0, *", "H9"),
    Bug("the epoch is not raised", "kill", "storage/log.py", "        epoch = 1 + max([", "        epoch = max([1, "),
    Bug("an empty segment is rotated", "kill", "storage/log.py",
        "        if self.bytes == self._head_size:\n            return False",
        "        if not self.bytes:\n            return False", "H16"),
    Bug("a short write without room is kept", "states", "storage/log.py",
        "            self._take_back()\n", "            pass\n"),
    Bug("a batch that cannot be cut back may be written over", "recovery", "storage/log.py",
        "            if isinstance(error, DiskFull):\n                raise Sync", "            if not error:\n                raise Sync"),
    Bug("a cut back is not durable before the next batch is written", "states", "storage/log.py",
        "        self._files.truncate(self._handle, self.bytes)\n        self._files.sync(self._handle)\n",
        "        self._files.truncate(self._handle, self.bytes)\n"),
    Bug("a cut back leaves a byte of the batch", "states", "storage/log.py",
        "        self._files.truncate(self._handle, self.bytes)\n", "        self._files.truncate(self._handle, self.bytes + 1)\n"),
    Bug("a batch is written behind the padding", "kill", "storage/log.py",
        "write_all(self._files, self._handle, self.bytes, data, enough", "write_all(self._files, self._handle, self._padded, data, enough"),
    Bug("after a cut back a batch is written where the file ended before", "states", "storage/log.py",
        "        self._padded = self.bytes\n        self._files.truncate(",
        "        self.bytes, self._padded = self._padded, self.bytes\n        self._files.truncate("),
    Bug("a batch is refused because its padding does not fit", "recovery", "storage/log.py", "data, enough=len(line))", "data)"),
    Bug("a segment with padding is not known to be in its copy", "recovery", "storage/log.py",
        "ours.ljust(len(theirs), b\"\\n\").startswith(theirs)", "ours.startswith(theirs)"),
    Bug("padding is damage", "kill", "storage/segments.py",
        "        if state is not TailState.DAMAGED:\n", "        if state is TailState.TORN or not rest:\n"),
    Bug("padding is a torn write", "recovery", "storage/codec.py", "    if not written and (base or not data):", "    if not data:"),
    Bug("padding is salvaged as something that was lost", "recovery", "storage/salvage.py",
        "        if data[offset] == NEWLINE:", "        if data[offset] < NEWLINE:"),
    Bug("what is read in the midst of a write is damage at once", "recovery", "storage/segments.py",
        "        if rest == before and found.bad is not None:", "        if found.bad is not None:"),
    Bug("a failed fsync of a log is not told", "small worlds", "storage/log.py",
        "            self._guarded(lambda: self._files.sync(self._handle))\n",
        "            with suppress(SyncFailed):\n                self._files.sync(self._handle)\n"),
    Bug("a failed fsync is tried again", "errors", "storage/files.py",
        "            self._poisoned.add(handle)\n", "            return _data_sync(handle)\n", "H4"),
    Bug("a short write is taken for a whole one", "errors", "storage/files.py", "    while written < enough:", "    while not written:"),
    Bug("fsync of the wrong file", "small worlds", "storage/log.py",
        "self._guarded(lambda: self._files.sync(self._handle))", "self._guarded(lambda: self._files.sync_folder())"),
    Bug("a successor is not checked to continue its predecessor", "stale files", "storage/segments.py",
        "    if continues and chain != at.chain:", "    if continues and chain == -1:"),
    Bug("a log is not checked against what queue.json folded of it", "stale files", "storage/segments.py",
        "    if skipped < len(batches) and (", "    if skipped < 0 and ("),
    Bug("segments are deleted whatever queue.json holds", "small worlds", "storage/segments.py",
        "if segment.first < lowest.first and segment.epoch <= lowest.epoch]", "if segment != every[-1]]", "H17"),
    Bug("a missing log is taken for an empty one", "stale files", "storage/log.py",
        "    if header.epoch(kind) and not header.closed and", "    if not header and"),
    # ── lines ────────────────────────────────────────────────────────────────────────────────────────────────────────
    Bug("the log is cut at the first wrong checksum", "bits", "storage/codec.py",
        "TailState.TORN if torn else TailState.DAMAGED", "TailState.TORN"),
    Bug("any NUL means torn", "bits", "storage/codec.py", "TailState.TORN if torn else", "TailState.TORN if torn or data.count(0) else"),
    Bug("any newline means torn", "bits", "storage/codec.py", "TailState.TORN if torn else",
        "TailState.TORN if torn or data.count(10) > 1 else"),
    Bug("a sector of newlines anywhere means torn", "bits", "storage/codec.py",
        "    missing = (part for part in _sectors(data[:claims], base)",
        "    return any(not part.strip(blank) for part in _sectors(data, base)"),
    Bug("a sector of newlines is not what was there before", "states", "storage/codec.py",
        "    blank = b\"\\n\\0\" if base else b\"\\0\"", "    blank = b\"\\0\""),
    Bug("a line that ends early in padding is damage", "lines", "storage/codec.py",
        "    if len(data) < claims or len(written) < claims - 1:", "    if len(data) < claims:"),
    Bug("a wrong byte in padding is a torn write", "bits", "storage/codec.py",
        "    return ends and all(b\"\\n\" not in part", "    return True or all(b\"\\n\" not in part"),
    Bug("no checksum of the header", "bits", "storage/codec.py", ' or b"%08x" % crc32(head[6:64]) != head[64:]:', ":"),
    Bug("no checksum of the payload", "wild reading", "storage/codec.py",
        "    if crc32(memoryview(data)[offset + HEADER : end], chain) != head.chain:", "    if not head.chain:"),
    Bug("a batch behind the damage does not count", "lines", "storage/codec.py",
        "isinstance(bad, NotNext) or _batch_elsewhere(written, number)", "isinstance(bad, NotNext)"),
    Bug("a torn header is damage", "states", "storage/codec.py",
        "    if written and len(written) < HEADER and _begins(written):", "    if written and len(written) < 0:"),
    # ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────
    Bug("queue.json holds what nobody synced in the log", "checkpoints", "storage/checkpoint.py",
        "            _sync_log(files, segment)\n", "            pass\n"),
    Bug("segments are deleted before queue.json is replaced", "states", "storage/checkpoint.py",
        "    _put_in_place(files)\n    if present", "    _unlink(files, names)\n    _put_in_place(files)\n    if present"),
    Bug("segments are deleted before queue.json's name is synced", "states", "storage/checkpoint.py",
        "    files.sync_folder()  # Not before this line is the new queue.json certain to be found after a power cut.\n", ""),
    Bug("the new queue.json is not synced", "small worlds", "storage/queue_file.py",
        "% self._crc)\n        self._files.sync(self._handle)\n", "% self._crc)\n"),
    Bug("a checkpoint leans on a queue.json that another one left half named", "two checkpoints", "storage/checkpoint.py",
        "    Until then nothing that leans on it may become durable: no segment may go, and nothing in previous/ may say that there is a "
        "queue.json.\n    \"\"\"\n    files.sync_folder()\n", "    \"\"\"\n"),
    Bug("the archive is not synced", "states", "storage/archive.py",
        "            self._files.sync(self._handle)\n            self._files.sync_folder(FOLDER)",
        "            self._files.sync_folder(FOLDER)"),
    Bug("the archive's name is not synced", "states", "storage/archive.py",
        "            self._files.sync_folder(FOLDER)\n", ""),
    Bug("the archive is not cut to what is committed of it", "kill", "storage/archive.py",
        "        self._files.truncate(handle, committed)\n        if committed and",
        "        self._committed = committed = self._files.size(handle)\n        if committed and", "H19"),
    Bug("retired tasks are not archived", "kill", "storage/checkpoint.py", "            self._archive.add(task)",
        "            pass"),
    Bug("tasks that nothing happened to are not folded", "kill", "storage/stream.py",
        "            if given.id not in self.touched:\n                yield", "            if not given.id:\n                yield"),
    Bug("the epochs are not kept in queue.json", "kill", "storage/checkpoint.py",
        "tuple(highest_epoch(self._files, kind, self._header, self._folders) for kind in LogKind)", "self._header.epochs", "H9"),
    Bug("the last task number is not kept in queue.json", "kill", "storage/checkpoint.py",
        '"last_task": self.stream.last_task,', '"last_task": self._header.last_task,'),
    Bug("the checksums to continue are not kept in queue.json", "kill", "storage/checkpoint.py",
        '"chains": (f"{published.chain:08x}", f"{progress.chain:08x}"),', '"chains": self._header.chains,'),
    Bug("a clean stop is not told from a lost log", "kill", "storage/checkpoint.py",
        "archive=mark, closed=closed, **", "archive=mark, closed=False, **"),
    Bug("the generation before is not kept", "kill", "storage/checkpoint.py",
        "if name not in {QUEUE, *names}])", "if name not in names])"),
    Bug("a checkpoint keeps an edit for the generation before", "checkpoints", "storage/checkpoint.py",
        "    if present.reader and files.identity(_REPLACED) == found:", "    if present.reader:"),
    Bug("a checkpoint replaces a queue.json that somebody put there meanwhile", "checkpoints", "storage/checkpoint.py",
        "    if files.identity(QUEUE) != found:\n        raise ChangedQueue", "    if False:\n        raise ChangedQueue"),
    Bug("a queue.json has the name of the generation before while it is read", "checkpoints", "storage/checkpoint.py",
        "        files.link(QUEUE, _REPLACED)\n",
        "        files.link(QUEUE, _REPLACED)\n        files.rename(_REPLACED, f\"{PREVIOUS}/{QUEUE}\")\n        "
        "files.link(QUEUE, _REPLACED)\n"),
    Bug("the generation before is let go before the one in its place is certain", "checkpoints", "storage/checkpoint.py",
        "        files.sync_folder(PREVIOUS)\n        _unlink", "        _unlink"),
    Bug("what a checkpoint replaced counts for nothing before it has its name", "checkpoints", "storage/checkpoint.py",
        "        if files.identity(_REPLACED) is not None:", "        if not _REPLACED:"),
    Bug("a checkpoint that fails behind its draft keeps it", "checkpoints", "storage/checkpoint.py",
        "        _unlink(self._files, [DRAFT])\n", "        pass\n"),
    Bug("a checkpoint that fails behind its draft keeps what it archived", "checkpoints", "storage/checkpoint.py",
        "        self._archive.withdraw()\n", "        pass\n"),
    Bug("a checkpoint that fails in place takes back what it archived", "checkpoints", "storage/checkpoint.py",
        "        if self._drafted and self._files.identity(DRAFT) is None:\n", "        if not DRAFT:\n"),
    Bug("an edit in the midst of a checkpoint ends the queue without a second look", "lost files", "broker/checkpointing.py",
        "DiskFull | ChangedQueue | OSError", "DiskFull | OSError"),
    Bug("what has the name of a segment in previous/ is taken for it", "checkpoints", "storage/checkpoint.py",
        "        if files.identity(name) not in {None, files.identity(second)}:", "        if not second:"),
    Bug("a segment that is removed behind the fold is missed", "checkpoints", "storage/checkpoint.py",
        "        with suppress(FileNotFoundError):\n            _link(", "        with suppress():\n            _link("),
    Bug("the segments between two generations are not kept", "kill", "storage/checkpoint.py",
        '            _link(files, name, f"{PREVIOUS}/{name}")', "            pass"),
    Bug("queue.json's checksum is not checked", "snapshot bits", "storage/queue_file.py",
        ' or b"%08x" % crc != self._checksum:', ":"),
    Bug("a missing queue.json is an empty queue", "stale files", "storage/queue_file.py",
        '            if name == QUEUE and _had_one(files):', "            if not name:"),
    Bug("a damaged version is a newer one", "golden", "storage/queue_file.py",
        " and not self._is_ours_but_for_the_version():", ":"),
    # ── recovery and repair ──────────────────────────────────────────────────────────────────────────────────────────
    Bug("ids in queue.json may be published again", "kill", "storage/recovery.py",
        "found = _ids_decoder.decode(b\"[%b]\" % block)", "found = _ids_decoder.decode(b\"[]\")"),
    Bug("ids in the log may be published again", "small worlds", "storage/recovery.py",
        "            numbers.add([task.id for task in tasks], batch.first_task)\n", ""),
    Bug("progress may rest on batches that are not there", "recovery", "storage/recovery.py",
        "        if self.published.number < batch.after.number or (", "        if self.published.number < 0 or ("),
    Bug("salvage takes altered batches at their word", "bits", "storage/salvage.py",
        " or crc32(line[HEADER:], before.chain) == batch.chain", " or batch.number > 0"),
    Bug("salvage does not list the lines it cannot read", "wild damage", "storage/salvage.py", "    lost += unread\n", ""),
    Bug("a repair cuts off what was archived since the generation before", "repair", "storage/checkpoint.py",
        "committed_archive(files) if again else mark", "mark"),
    Bug("salvage does not miss what a sealed segment held that is gone", "repair", "storage/salvage.py",
        "        last = max(last, _chain_before(data, segment).number)", "        last = max(last, 0)"),
    Bug("salvage does not miss the end of a log on which the other one rests", "repair", "storage/salvage.py",
        "    last = max(through, there_was.number)", "    last = through"),
    Bug("a gap in a log is called damage of the file before it", "repair", "storage/segments.py",
        "            if then and _ends_clean(", "            if not then and _ends_clean("),
    Bug("an older queue.json is not made anew", "repair", "storage/repair.py",
        "    if not any(finding.kind == \"missing\"", "    if not any(finding.kind == \"newer\""),
    Bug("an older queue.json counts for more than the generation before", "repair", "storage/salvage.py",
        "    if not _is_overtaken(files) and (", "    if ("),
    Bug("a repair that mends nothing keeps a copy each time", "repair", "storage/repair.py",
        "        aside.withdraw()\n", "        pass\n"),
    Bug("what a repair removed comes back after a power cut", "repair", "storage/repair.py",
        "        files.sync_folder(folder)\n", "        pass\n"),
    Bug("what a repair has replaced is not kept", "repair", "storage/repair.py",
        "                if self._files.identity(name) == self._files.identity(kept):\n", "                if kept:\n"),
    Bug("a sector that cannot be read ends repair", "repair", "storage/repair.py",
        "            continue  # What it held there is not guessed at.\n", "            raise\n"),
    Bug("salvage tells a task again what its line tells", "repair", "storage/salvage.py", "_told_by(state, progress))", "0)"),
    Bug("salvage believes a first line whose checksum does not fit", "repair", "storage/salvage.py",
        "    return QueueHeader(last_task=told.last_task, epochs=told.epochs, closed=told.closed)\n", "    return told\n"),
    Bug("salvage does not list what it cannot read", "repair", "storage/salvage.py",
        "does not give back\" for offset, length in gaps]", "does not give back\" for offset, length in gaps[:0]]"),
    Bug("one sector that cannot be read takes a mebibyte along", "repair", "storage/files.py",
        "_PIECES = (1 << 20, 4096, 512)", "_PIECES = (1 << 20,)"),
    Bug("salvage drops a task whose id was published before", "repair", "storage/salvage.py",
        "        if before is not None and before.number < number:", "        if before is not None and before.number < 0:"),
    # ── judgement ────────────────────────────────────────────────────────────────────────────────────────────────────
    Bug("a token without its epoch", "small worlds", "core/dispatching.py", "    return (epoch << _EPOCH_BITS)",
        "    return (1 << _EPOCH_BITS)", "H9"),
    Bug("a late completion is taken", "core", "core/dispatching.py",
        "        for task in expired:\n            del seat.held[task.token]\n", ""),
    Bug("what a dead consumer held is not returned", "small worlds", "core/dispatching.py",
        "            self._lose(list(seat.held.values()), Outcome.LOST, now)", "            pass"),
    Bug("a consumer is welcomed only once its first lease is durable", "core", "core/dispatching.py",
        "self.turn.pushes.append((peer, Welcome(", "self.turn.answers.append((peer, Welcome("),
    Bug("orphaned leases never end", "core", "core/dispatching.py",
        "        if self._orphans and now.monotonic_ms >= self._orphans.until_ms:", "        if self._orphans and not now.monotonic_ms:"),
    Bug("a restart forgets what was ready", "kill", "core/dispatching.py",
        "            else:\n                self._queue(task, now)\n            if task.deadline_ms:\n                self._deadlines.add"
        "(task, task.deadline_ms)\n        self", "            if task.deadline_ms:\n                self._deadlines.add(task, "
        "task.deadline_ms)\n        self"),
    Bug("a restart hands out what consumers hold", "core", "core/dispatching.py", "                self._orphans.add(task)",
        "                self._queue(task, now)"),
    Bug("a cancelled task is not taken from its consumer", "core", "core/callers.py",
        "                self._take_away(task)\n", ""),
    Bug("a repeated completion is called stale", "core", "core/dispatching.py",
        "    return any(attempt.token == token and", "    return any(attempt.token < 0 and"),
    Bug("attempts are not counted", "core", "core/state.py", "            task.attempt += 1\n", ""),
    Bug("a return counts as an attempt", "core", "core/state.py", "                task.attempt -= 1", "                pass"),
    Bug("a retry does not wait", "core", "core/state.py",
        "        task.status = TaskStatus.SCHEDULED if record.retry_at_ms > at_ms else _PENDING\n        task.run_at_ms",
        "        task.status = _PENDING\n        task.run_at_ms"),
    Bug("a retired task stays", "two checkpoints", "core/state.py", "            del self.tasks[task_id]", "            pass"),
    Bug("a task that kills its consumers is delivered for ever", "core", "core/settling.py", "    if len(tasks) > 1:", "    if tasks:"),
    Bug("a late forget message drops a new task's id", "core", "core/publishing.py",
        " for task_id, number in left.items() if number <= through}", " for task_id, number in left.items()}"),
    Bug("a forget message about an earlier task drops a new one's id", "core", "core/taken.py",
        "            if single.get(task_id) == number:", "            if task_id in single:", "H11"),
    Bug("two tasks of one write may have one id", "core", "core/taken.py", "len(fresh) < len(ids) or ", ""),
    Bug("an id that was forgotten in a run stays taken", "core", "core/taken.py",
        "            run.numbers[offset] = 0\n", ""),
    Bug("a second run of the same ids is taken for new ones", "core", "core/taken.py", "run.first + len(run.numbers) > counter", "False"),
    Bug("an id that has moved to another shelf is free again", "core", "core/shelves.py", " & bit > 0", " & 1 > 0"),
    Bug("a forget message about an earlier task drops a new one's id from its shelf", "core", "core/taken.py",
        "shelved.get(task_id) == number", "shelved.get(task_id)"),
    # whose the folder is, and what is waited for
    Bug("a lock is taken for held without the kernel's word", "race", "storage/locks.py",
        "        lock._acquire(timeout)\n", "        pass\n"),
    Bug("a broker does not look at its lock again", "locks", "broker/process.py", "        self._files.guard(self._lock.check)\n", ""),
    Bug("a manager does not look at its lock again", "locks", "broker/manager.py", "            files.guard(lock.check)\n", ""),
    Bug("a sync counts though the lock was lost meanwhile", "locks", "storage/files.py",
        "            ) from error\n        self._check()\n", "            ) from error\n"),
    Bug("a publish is acknowledged in a file that somebody removed", "lost files", "broker/publisher_broker.py",
        "        self._log.assure()  # And has it where it will be looked for.\n", ""),
    Bug("an outcome is acknowledged in a file that somebody removed", "lost files", "broker/consumer_broker.py",
        "            self._log.assure()  # And has it where it will be looked for.\n", ""),
    Bug("what a removed log held is not saved", "lost files", "storage/log.py",
        "            self._save()\n", "            raise DiskFull(\"\")\n"),
    Bug("a log that was removed and cannot be saved is not missed", "lost files", "storage/log.py",
        "                self._create()  # What is", "                pass  # What is"),
    Bug("a rotation lets go of a file that was removed", "lost files", "storage/log.py",
        "        self.assure()\n        self._look", "        self._refuse_broken()\n        self._look"),
    Bug("a sealed segment is let go of before it is folded", "lost files", "storage/log.py",
        "        self._sealed.append(sealed)\n", "        self._files.close(sealed.handle)\n"),
    Bug("what is folded is put back", "lost files", "storage/log.py", "sealed.number > through]", "sealed.number]"),
    Bug("a sealed segment that was removed is not put back at the end", "lost files", "storage/log.py",
        "        with suppress(StorageError):\n            self._look_after_sealed()\n", ""),
    Bug("sealed segments are held without end", "lost files", "storage/log.py",
        "        while len(self._sealed) > SEALED_KEPT:", "        while len(self._sealed) > 1_000:"),
    Bug("a file is known by its name alone", "lost files", "storage/memory.py",
        "        return self._names.get(name) is self._handles[handle]", "        return name in self._names"),
    Bug("a broker that misses its sibling's log in the midst of its life ends everything", "lost files", "broker/restarts.py",
        "(served or status not in _FOR_GOOD)", "status not in _FOR_GOOD"),
    Bug("a broker does not look for its log when its sibling starts", "lost files", "broker/sides.py",
        "        self._broker.assure()  # A ConsumerBroker", "        # A ConsumerBroker"),
    Bug("a broker that ends by an error lets go of a log that was removed", "lost files", "broker/process.py",
        "                self._broker.close()  # If", "                pass  # If"),
    Bug("a manager that ends removes its successor's socket", "locks", "channel/registration.py",
        "            if self._identity() == self._inode:\n                self._path.unlink()", "            self._path.unlink()"),
    Bug("a broker without room to start is a dead one", "want", "broker/process.py",
        "                self._tell(Waiting(f\"it waits for room on the disk: {error.message}\"))\n", "                raise error\n"),
    Bug("a broker that no process can be had for ends everything", "want", "broker/crew.py",
        "            if not is_want(error):\n                raise", "            raise"),
    Bug("a checkpoint that may open no file is damage", "want", "broker/checkpointing.py", "OSError) or is_want(error)\n", "OSError)\n"),
    Bug("a broker takes clients until it can open nothing", "want", "broker/process.py",
        "self._files_max - _FILES_KEPT:", "self._files_max:"),
    Bug("a client that does not read may let more wait than is said", "deaf", "broker/process.py",
        ", pending_max=PEER_PENDING_MAX_BYTES)", ")"),
    Bug("a client that is to be dropped is answered on", "deaf", "broker/loop.py", " or peer in self._broken", ""),
    Bug("consumers have to come back before they are let in", "slow disk", "broker/consumer_broker.py",
        "            loaded.await_holders(self._clock.monotonic_ms())", "            pass"),
    Bug("a checkpoint for which there was no memory is told as done", "no memory", "errors.py",
        "\"out of memory\" if isinstance(error, MemoryError) else str(error) or repr(error)", "str(error)"),
    Bug("a desk that can let nobody in looks again at once", "want", "broker/reception.py", "_PAUSE_MS = 200", "_PAUSE_MS = 0"),
)  # fmt: skip


def try_out(bug: Bug) -> Verdict:
    """Plant the bug in a copy of the source, and run its harness on that."""
    with tempfile.TemporaryDirectory(prefix="jsonqueue-planted-") as folder:
        source = Path(folder) / "src"
        shutil.copytree(SOURCE, source / "jsonqueue", ignore=shutil.ignore_patterns("__pycache__"))
        path = source / "jsonqueue" / bug.file
        text = path.read_text()
        if text.count(bug.old) != 1:
            return Verdict(bug, False, 0.0, f"the line to change is there {text.count(bug.old)} times")
        path.write_text(text.replace(bug.old, bug.new))
        return _run(bug, source)


def _run(bug: Bug, source: Path) -> Verdict:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COVERAGE", "COV_", "PYTEST"))}
    environment |= {"PYTHONPATH": os.pathsep.join([str(source), str(TESTS), *filter(None, sys.path)]), "PYTHONDONTWRITEBYTECODE": "1"}
    began = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, "-m", *HARNESSES[bug.harness]],
            env=environment, cwd=TESTS, capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
        output = done.stdout + done.stderr
        found = done.returncode == 1 and not re.search(_OWN_FAULT, output, re.MULTILINE)
    except subprocess.TimeoutExpired:
        output, found = f"nothing within {LIMIT_S:.0f} s", False
    return Verdict(bug, found, time.monotonic() - began, _words(output))


def _words(output: str) -> str:
    """What the harness said, in a line."""
    for pattern in (r"^FOUND .*$", r"^E  +\S.*$", r"^\w*(?:Error|Exception|History|Queue)\b.*$"):
        if found := re.search(pattern, output, re.MULTILINE):
            return re.sub(r"\s+", " ", found[0].removeprefix("FOUND ").removeprefix("E").strip())[:160]
    return output.strip()[-160:]


def main() -> None:
    parser = argparse.ArgumentParser(description="find every planted bug")
    parser.add_argument("--only", default="", help="numbers of bugs, with commas")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--table", type=Path, help="write the table into this page")
    options = parser.parse_args()
    chosen = [BUGS[int(number)] for number in options.only.split(",")] if options.only else list(BUGS)
    verdicts = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for verdict in pool.map(try_out, chosen):
            verdicts.append(verdict)
            mark = "found" if verdict.found else "MISSED"
            number = BUGS.index(verdict.bug)
            print(f"{mark:6} {verdict.seconds:5.1f} s  {number:2} {verdict.bug.name} ({verdict.bug.harness}): {verdict.words}", flush=True)
    if options.table:
        _write_table(options.table, verdicts)
    missed = sum(not verdict.found for verdict in verdicts)
    print(f"{len(verdicts) - missed} of {len(verdicts)} found")
    sys.exit(1 if missed else 0)


def _write_table(page: Path, verdicts: list[Verdict]) -> None:
    rows = ["| planted | found by | seconds |", "|---|---|---|"]
    for verdict in verdicts:
        hole = f" ({verdict.bug.hole})" if verdict.bug.hole else ""
        rows.append(f"| {verdict.bug.name}{hole} | {verdict.bug.harness if verdict.found else '**missed**'} | {verdict.seconds:.0f} |")
    text = page.read_text()
    begin, end = "<!-- planted bugs -->\n", "<!-- end of planted bugs -->"
    head, _, rest = text.partition(begin)
    page.write_text(head + begin + "\n".join(rows) + "\n" + end + rest.partition(end)[2])


if __name__ == "__main__":
    main()
