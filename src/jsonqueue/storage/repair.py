"""Checking a queue's files, and mending them.

``verify`` reads, ``repair`` mends what can be mended without loss: a damaged, edited or old queue.json is folded anew from ``previous/``
and the logs, one wrong byte in a line's fixed part is put right. What was there before stays, in ``damaged-<n>/``, as second names of the
same files. Only with ``accept_loss`` is anything given up, and then it is listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from jsonqueue.clock import Clock, SystemClock
from jsonqueue.core.state import QueueState
from jsonqueue.errors import CorruptQueue, DiskFull, LockLost, StorageError, UnreadableFile, UnsupportedFormat
from jsonqueue.storage.archive import Archive
from jsonqueue.storage.checkpoint import DRAFT, Cut, rebuild
from jsonqueue.storage.codec import UNREADABLE
from jsonqueue.storage.editing import read_edit
from jsonqueue.storage.files import Files, read_around, write_all
from jsonqueue.storage.folder import ARCHIVE, load_config, open_folder
from jsonqueue.storage.locks import hold_all
from jsonqueue.storage.looking import view_of
from jsonqueue.storage.mending import Flaw, flaw_of, mended
from jsonqueue.storage.queue_file import (
    PREVIOUS,
    QUEUE,
    ArchiveMark,
    EditedQueue,
    QueueHeader,
    QueueReader,
    QueueWriter,
    decode_block,
    encode_task,
    header_in,
    read_header,
)
from jsonqueue.storage.recovery import fold_logs, load_state
from jsonqueue.storage.salvage import Salvage, salvage
from jsonqueue.storage.segments import LogKind, MissingBatches, Segment, chain_of, segments_of
from jsonqueue.task import StoredTask

__all__ = ["Finding", "Report", "examine", "mend", "repair", "verify"]

_MEND = (
    "`jsonqueue repair` mends what can be mended without loss; "
    "`jsonqueue repair --accept-loss` puts the files as they are aside, and keeps what is whole"
)


class Finding(NamedTuple):
    """One thing that is not as it should be."""

    file: str
    offset: int
    batch: int | None
    what: str
    kind: str
    """``damaged``, ``missing``, ``edited``, ``newer``; harmless ones: ``torn-tail``, ``leftover``, ``old-damage``."""
    harmless: bool
    options: str
    """What to do about it; empty: nothing needs to be done."""


class Report(NamedTuple):
    """What verify found, or repair found in the end and did."""

    findings: list[Finding]
    done: list[str]
    """What repair changed."""
    lost: list[str]
    """What ``accept_loss`` gave up."""
    tasks: int | None
    """How many tasks the queue holds; None when it cannot be told."""

    @property
    def ok(self) -> bool:
        return all(finding.harmless for finding in self.findings)


def verify(queue_dir: str | Path) -> Report:
    """Check every byte of the queue's files, and that they fit together. Writes nothing, takes no lock; brokers may be running."""
    files = open_folder(queue_dir, create=False, read_only=True)
    try:
        return examine(files)
    finally:
        files.shut()


def repair(queue_dir: str | Path, *, accept_loss: bool = False, accept_edit: bool = False, clock: Clock | None = None) -> Report:
    """Mend the queue's files. Raises :class:`~jsonqueue.errors.ManagerRunning` while anyone may write to them.

    ``accept_edit``: a queue.json that was edited by hand is taken as it stands now. ``accept_loss``: what cannot be mended is given up.
    Without them nothing is lost: the report then says what is left to do.
    """
    files = open_folder(queue_dir, create=False)
    with ExitStack() as stack:
        stack.callback(files.shut)
        files.guard(stack.enter_context(hold_all(queue_dir, timeout=1.0, what="jsonqueue repair")))
        return mend(files, accept_loss=accept_loss, accept_edit=accept_edit, at_ms=(clock or SystemClock()).wall_ms())


# ── looking ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def examine(files: Files) -> Report:
    """What :func:`verify` reports. Writes nothing."""
    findings: list[Finding] = []
    tasks: int | None = None
    try:
        tasks = _count(files)
    except StorageError as error:
        findings.append(_finding(error))
    findings += [found for found in _flaws(files) if (found.file, found.offset) not in {(known.file, known.offset) for known in findings}]
    findings += _untidy(files)
    return Report(findings, [], [], tasks)


def _count(files: Files) -> int:
    """How many tasks there are, if all of them can be read and fit together."""
    with view_of(files) as view:
        count = view.count_read()
    # Two of one id: loading them all tells which of the two should not be there.
    return len(load_state(files).state.tasks) if count is None else count


def _finding(error: StorageError) -> Finding:
    if isinstance(error, CorruptQueue):
        kind = "edited" if isinstance(error, EditedQueue) else "missing" if isinstance(error, MissingBatches) else "damaged"
        options = _MEND if kind == "damaged" else error.hint
        return Finding(error.file, error.offset, error.batch, error.why, kind, harmless=False, options=options)
    if isinstance(error, UnreadableFile):
        return _unreadable(error)
    kind = "newer" if isinstance(error, UnsupportedFormat) else "damaged"
    return Finding(QUEUE, 0, None, error.message, kind, harmless=False, options=error.hint)


def _unreadable(error: UnreadableFile) -> Finding:
    options = error.hint if error.file.startswith(f"{ARCHIVE}/") else _MEND
    return Finding(error.file, error.offset, None, f"it cannot be read: {error.why}", "damaged", harmless=False, options=options)


def _flaws(files: Files) -> Iterator[Finding]:
    """The flaws of the segments, each taken by itself."""
    for segment in (segment for kind in LogKind for segment in segments_of(files, kind)):
        try:
            flaw = _flaw_in(files, segment)
        except FileNotFoundError:
            continue  # a checkpoint passed
        except UnreadableFile as error:
            yield _unless_old(files, segment, _unreadable(error))
            continue
        if flaw is not None:
            yield _flaw_finding(files, segment, flaw)
    for name in (f"{PREVIOUS}/{QUEUE}",):
        try:
            _read_queue(files, name)
        except (StorageError, *UNREADABLE) as error:
            yield Finding(name, 0, None, f"{error}", "old-damage", harmless=True, options="the next checkpoint replaces it")


def _flaw_in(files: Files, segment: Segment) -> Flaw | None:
    """The flaw of a segment that may be written to meanwhile: what is still there when it is read again."""
    before: bytes | None = None
    while True:
        data = _bytes_of(files, segment.name)
        flaw = flaw_of(data, segment)
        if flaw is None or flaw.torn or data == before:
            return flaw
        before = data


def _flaw_finding(files: Files, segment: Segment, flaw: Flaw) -> Finding:
    if flaw.torn:
        what = "a write that never became a batch: it was not acknowledged"
        return Finding(segment.name, flaw.offset, flaw.batch, what, "torn-tail", harmless=True, options="")
    found = Finding(segment.name, flaw.offset, flaw.batch, flaw.why, "damaged", harmless=False, options=_MEND)
    return _unless_old(files, segment, found)


def _unless_old(files: Files, segment: Segment, found: Finding) -> Finding:
    if _is_needed(files, segment):
        return found
    return found._replace(what=f"{found.what}; nothing needs it any more", kind="old-damage", harmless=True, options="")


def _is_needed(files: Files, segment: Segment) -> bool:
    try:
        return segment in [link.segment for link in chain_of(files, segment.kind, read_header(files).through(segment.kind).number)]
    except (StorageError, FileNotFoundError):
        return True


def _untidy(files: Files) -> Iterator[Finding]:
    for name in files.list():
        if name.endswith(".draft"):
            what = "the beginning of a file that was never finished"
            yield Finding(name, 0, None, what, "leftover", harmless=True, options="")


def _read_queue(files: Files, name: str) -> None:
    reader = QueueReader.open(files, name)
    if reader is not None:
        with reader:
            for block in reader.blocks():
                decode_block(block)


def _bytes_of(files: Files, name: str) -> bytes:
    handle = files.open(name)
    try:
        return files.read(handle, 0, files.size(handle))
    finally:
        files.close(handle)


# ── mending ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def mend(files: Files, *, accept_loss: bool, accept_edit: bool, at_ms: int) -> Report:
    """What :func:`repair` does, once the locks are held."""
    done: list[str] = []
    lost: list[str] = []
    report = examine(files)
    if report.ok:
        return report
    aside = _Aside(files)
    try:
        _mend_segments(files, aside, done)
        report = _mend_queue(files, aside, done, accept_edit=accept_edit, at_ms=at_ms)
        if not report.ok and accept_loss and not any(finding.kind == "newer" for finding in report.findings):
            lost = _give_up(files, aside, done, at_ms)
            report = examine(files)
    finally:
        aside.withdraw()
    return report._replace(done=done, lost=lost)


class _Aside:
    """Keeps what is about to be changed: second names of it in a folder that is made when it is first needed."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._kept: list[tuple[str, str]] = []
        self.folder = ""

    def keep(self, name: str) -> bool:
        """Whether there was anything to keep."""
        if self._files.identity(name) is None:
            return False
        if not self.folder:
            self.folder = next(folder for folder in (f"damaged-{n}" for n in range(1, 10_000)) if not self._files.list(folder))
            self._files.make_folder(self.folder)
            self._files.sync_folder()
        with suppress(FileExistsError, FileNotFoundError):
            kept = f"{self.folder}/{name.replace('/', '-')}"
            self._files.link(name, kept)
            self._kept.append((name, kept))
        self._files.sync_folder(self.folder)
        return True

    def withdraw(self) -> None:
        """Take the second names away of what was not changed in the end, and the folder if nothing else is in it: whoever tries again
        and again must not find a folder for each time."""
        with suppress(StorageError, FileNotFoundError):
            for name, kept in self._kept:
                if self._files.identity(name) == self._files.identity(kept):
                    self._files.unlink(kept)
            if self.folder and not self._files.list(self.folder):
                self._files.remove_folder(self.folder)


def _mend_segments(files: Files, aside: _Aside, done: list[str]) -> None:
    for segment in (segment for kind in LogKind for segment in segments_of(files, kind, ("", PREVIOUS))):
        try:
            better = mended(_bytes_of(files, segment.name), segment)
        except UnreadableFile:
            continue  # What it held there is not guessed at.
        if better is not None:
            aside.keep(segment.name)
            _write_over(files, segment.name, better)
            done.append(
                f"{segment.name}: a wrong byte in the fixed part of a line, or in the padding, was put right; "
                f"the damaged file is in {aside.folder}/"
            )


def _write_over(files: Files, name: str, data: bytes) -> None:
    draft = name + ".draft"
    with suppress(FileNotFoundError):
        files.unlink(draft)
    handle = files.open(draft, create=True)
    try:
        write_all(files, handle, 0, data)
        files.sync(handle)
    except DiskFull:
        files.unlink(draft)  # Until it is tried again it must not take what little room there is.
        raise
    finally:
        files.close(handle)
    files.rename(draft, name)
    files.sync_folder(name.rpartition("/")[0])


def _mend_queue(files: Files, aside: _Aside, done: list[str], *, accept_edit: bool, at_ms: int) -> Report:
    report = examine(files)
    wrong = next((finding for finding in report.findings if finding.file == QUEUE and finding.kind in ("damaged", "edited")), None)
    if wrong is None:
        return _replace_older(files, aside, done, report, at_ms)
    try:
        if accept_edit and files.identity(QUEUE) is not None:  # One that is no JSON is told of, and not undone.
            _accept_edit(files, aside, done)
        else:
            kept = f"; the one before is in {aside.folder}/" if aside.keep(QUEUE) else ", since there was none"
            rebuild(files, config=load_config(files), at_ms=at_ms, at_least=_told_through(files))
            done.append(f"{QUEUE} was made anew from the generation before it and the logs{kept}")
    except StorageError as error:
        return _not_mended(report, error)
    return examine(files)


def _not_mended(report: Report, error: StorageError) -> Report:
    if isinstance(error, LockLost):
        raise error  # That is no finding: whoever has the queue by now finds it as it is.
    second = _finding(error)
    return report._replace(findings=[*report.findings, second._replace(what=f"while mending {QUEUE}: {second.what}")])


def _replace_older(files: Files, aside: _Aside, done: list[str], report: Report, at_ms: int) -> Report:
    """Where batches are missing behind a whole queue.json, the newer one may still be told by the generation before it and the logs."""
    if not any(finding.kind == "missing" for finding in report.findings) or not aside.keep(QUEUE):
        return report
    try:
        rebuild(files, config=load_config(files), at_ms=at_ms, at_least=_told_through(files))
    except StorageError as error:
        # Mostly it is a file of a log that is not there: that was said.
        return report if isinstance(error, CorruptQueue) else _not_mended(report, error)
    done.append(f"{QUEUE}, an older one, was made anew from {PREVIOUS}/ and the logs; the older one is in {aside.folder}/")
    return examine(files)


def _told_through(files: Files) -> Cut | None:
    """How far the queue.json that is to be replaced says it goes, if its first line can be trusted."""
    try:
        handle = files.open(QUEUE)
    except FileNotFoundError:
        return None
    try:
        header = header_in(read_around(files, handle)[0])
    finally:
        files.close(handle)
    return Cut(header.progress_through, header.published_through) if header else None


def _accept_edit(files: Files, aside: _Aside, done: list[str]) -> None:
    data = _bytes_of(files, QUEUE)
    header, tasks = read_edit(data)
    fold_logs(files, header, QueueState(read_edit(data)[1]))  # Whether the logs go on from there; it changes the tasks.
    aside.keep(QUEUE)
    for name in files.list(PREVIOUS):  # It leads to the queue.json as it was before the edit.
        aside.keep(f"{PREVIOUS}/{name}")
    _write_queue(files, header, tasks)
    _remove(files, [f"{PREVIOUS}/{name}" for name in files.list(PREVIOUS)])
    done.append(f"{QUEUE} was taken as it was edited ({len(tasks)} tasks); the files as they were are in {aside.folder}/")


def _write_queue(files: Files, header: QueueHeader, tasks: list[StoredTask]) -> None:
    with QueueWriter.drafting(files, DRAFT, header) as writer:
        for task in tasks:
            writer.add(encode_task(task), 1)
    files.rename(DRAFT, QUEUE)
    files.sync_folder()


def _give_up(files: Files, aside: _Aside, done: list[str], at_ms: int) -> list[str]:
    """Keep what is whole, and nothing else. Everything that was there stays aside."""
    had: Salvage = salvage(files)
    old = [QUEUE, *(segment.name for kind in LogKind for segment in segments_of(files, kind))]
    old += [f"{PREVIOUS}/{name}" for name in files.list(PREVIOUS)]
    for name in old:
        aside.keep(name)
    header = replace(had.header, archive=_archived(files, had, at_ms), saved_ms=at_ms)
    _write_queue(files, header, sorted(had.state.tasks.values(), key=lambda task: task.number))
    _remove(files, old[1:])
    done.append(f"{len(had.state.tasks)} tasks were kept in a new {QUEUE}; all files as they were are in {aside.folder}/")
    return had.lost


def _remove(files: Files, names: list[str]) -> None:
    """Durably: what is told as mended must not be damaged again after a power cut, nor an edit be undone by what was before it."""
    for name in names:
        with suppress(FileNotFoundError):
            files.unlink(name)
    for folder in sorted({name.rpartition("/")[0] for name in names}):
        files.sync_folder(folder)


def _archived(files: Files, had: Salvage, at_ms: int) -> ArchiveMark:
    """The archive with those tasks in it that have left the queue, which no checkpoint will come to see any more."""
    archive = Archive(files, had.header.archive, at_ms=at_ms)
    try:
        if load_config(files).archive:
            for task in had.retired:
                archive.add(task)
        return archive.finish()
    finally:
        archive.close()
