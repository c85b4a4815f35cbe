"""A log, followed by a process that does not write it: across its segments, and across restarts of its writer."""

from __future__ import annotations

from jsonqueue.errors import CorruptQueue
from jsonqueue.storage.codec import Batch, Position
from jsonqueue.storage.files import Files
from jsonqueue.storage.log import PATIENCE
from jsonqueue.storage.segments import End, LogKind, chain_of, read_batches, segments_of

__all__ = ["LogReader"]

_GLANCE = 8 * 1024
"""What a reader that is up to date reads at first: mostly a batch or two, and little padding behind them."""


class LogReader:
    """Follows a log that somebody else writes: across segments, across restarts of the writer, and never further than it is told."""

    def __init__(self, files: Files, kind: LogKind, start: Position) -> None:
        self.kind = kind
        self.position = start
        """The last batch that was read."""
        self._files = files
        self._handle = -1
        self._at = End(start.number, start.epoch, -1, None)  # chain -1: not known yet

    def read_through(self, upto: Position) -> list[Batch]:
        """The batches after ``position`` up to and with ``upto``, which the log's writer has announced; [] when it is not beyond.

        Raises :class:`CorruptQueue` when the log does not hold them, or holds another batch at ``position`` than the one that was read.
        """
        if upto.number <= self.position.number:
            return []
        for _ in range(PATIENCE):
            try:
                # Mostly they stand in the segment that is open: then the folder need not be looked at.
                batches = self._read(upto)
                if batches is None:
                    before = segments_of(self._files, self.kind)
                    self._seek()
                    batches = self._read(upto)
                if batches is not None:
                    return batches
            except FileNotFoundError:
                continue  # The writer restarted, or a checkpoint passed, just now.
            if segments_of(self._files, self.kind) == before:
                break
        why = f"it was announced (epoch {upto.epoch}) and is not there"
        raise CorruptQueue(f"{self.kind}-*.jsonl", offset=0, batch=upto.number, why=why)

    def close(self) -> None:
        """Close the file it stands in."""
        if self._handle >= 0:
            self._files.close(self._handle)
            self._handle = -1

    def _read(self, upto: Position) -> list[Batch] | None:
        """The batches up to ``upto`` from where it stands; None, and nothing moved, when they are not all there."""
        batches: list[Batch] = []
        at, handle = self._at, self._handle
        if handle < 0:
            return None
        try:
            size = _GLANCE
            while at.number < upto.number:
                moved = self._read_segment(handle, at, upto.number, batches, size)
                size = 0
                if moved.number < upto.number:
                    step = self._next_segment(moved)
                    if step is None:
                        return None
                    handle = self._moved_to(handle, step)
                    moved = step
                at = moved
            if at.epoch != upto.epoch:
                return None  # Batches of a writer that died before they were durable; its successor's stand in another file.
            self._settle(handle, at)
            handle = -1
            return batches
        finally:
            if handle not in (-1, self._handle):
                self._files.close(handle)

    def _read_segment(self, handle: int, at: End, upto: int, into: list[Batch], size: int = 0) -> End:
        for batches, offset, _ in read_batches(self._files, handle, self.kind, at, upto=upto, size=size):
            if batches:
                into += batches
                at = End(batches[-1].number, batches[-1].epoch, batches[-1].chain, at.segment, offset)
        return at

    def _next_segment(self, at: End) -> End | None:
        """The beginning of the segment that continues the one that was sealed at ``at``, if there is one."""
        links = chain_of(self._files, self.kind, at.number)
        if not links or links[0].segment == at.segment:
            return None
        segment, head = links[0]
        if head.first != at.number + 1 or int(head.chain, 16) != at.chain:
            return None
        return at._replace(segment=segment, offset=head.size)

    def _moved_to(self, handle: int, step: End) -> int:
        assert step.segment is not None
        opened = self._files.open(step.segment.name)
        if handle != self._handle:
            self._files.close(handle)
        return opened

    def _settle(self, handle: int, at: End) -> None:
        if handle != self._handle:
            self.close()
        self._handle, self._at = handle, at
        self.position = Position(at.number, at.epoch)

    def _seek(self) -> None:
        """Find the place behind ``position`` in the segments as they are now."""
        self.close()
        links = chain_of(self._files, self.kind, self.position.number)
        if not links:
            return
        segment, head = links[0]
        handle = self._files.open(segment.name)
        try:
            at = End(head.first - 1, 0, int(head.chain, 16), segment, head.size)
            if head.first <= self.position.number:
                at = self._read_segment(handle, at, self.position.number, [])
            else:
                at = at._replace(epoch=self.position.epoch)
            if at.number < self.position.number:
                return
            known = self._at.chain
            if at.epoch != self.position.epoch or known not in (-1, at.chain):
                why = "it is not the batch that was read there before: the log was rewritten"
                raise CorruptQueue(segment.name, offset=at.offset, batch=self.position.number, why=why)
            self._handle, self._at = handle, at
        finally:
            if self._handle != handle:
                self._files.close(handle)
