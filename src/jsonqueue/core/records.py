"""What the logs hold: facts, in the past tense.

A batch of the *published* log is a list of :class:`~jsonqueue.task.TaskIn`. A batch of the *progress* log is a list of the records
below, each tagged by ``"what"`` and covering many tasks. Everything that was judged is in the record (when the retry is due, that the
attempt counts), so that replaying a log needs no judgement, and a rule that changes later changes no old log. The time of a record is the
time of its batch.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec
from msgspec import Raw, Struct

from jsonqueue.task import Outcome, StoredTaskIn

__all__ = [
    "Cancelled",
    "Completed",
    "Died",
    "Due",
    "Failed",
    "Leased",
    "Progress",
    "RecordName",
    "Replayed",
    "Retired",
    "Unblocked",
    "Unleased",
    "decode_progress",
    "decode_published",
    "encode_records",
]


class RecordName(StrEnum):
    """The tags of the progress records."""

    LEASED = "leased"
    COMPLETED = "completed"
    FAILED = "failed"
    UNLEASED = "unleased"
    DIED = "died"
    CANCELLED = "cancelled"
    DUE = "due"
    UNBLOCKED = "unblocked"
    REPLAYED = "replayed"
    RETIRED = "retired"


class _Record(Struct, omit_defaults=True, gc=False, tag_field="what", forbid_unknown_fields=True):
    pass


class Leased(_Record, tag="leased"):
    """Delivered to a consumer. The n-th id holds the token ``first + n``."""

    consumer: str
    first: int
    ids: list[str]


class Completed(_Record, tag="completed"):
    """Done; ``results`` runs parallel to ``ids``, empty when every result is null."""

    ids: list[str]
    results: list[Raw] = []


class Failed(_Record, tag="failed"):
    """An attempt failed and another one will follow at ``retry_at_ms``."""

    id: str
    error: str
    retry_at_ms: int


class Unleased(_Record, tag="unleased"):
    """Deliveries that ended without the consumer's verdict: ``lost``, ``expired`` or ``returned``. The tasks are ready again.

    ``counted`` says whether the attempt counts against the limit; ``suspect`` that they are delivered alone from now on.
    """

    ids: list[str]
    outcome: Outcome
    counted: bool = True
    suspect: bool = False


class Died(_Record, tag="died"):
    """Became dead letters. ``outcome`` tells how the current delivery ended, if there was one."""

    ids: list[str]
    reason: str
    outcome: Outcome | None = None
    error: str = ""


class Cancelled(_Record, tag="cancelled"):
    """Taken out by a caller or by the handler's own wish."""

    ids: list[str]
    reason: str


class Due(_Record, tag="due"):
    """Their time has come: scheduled tasks became pending."""

    ids: list[str]


class Unblocked(_Record, tag="unblocked"):
    """All they waited for is complete; ready, or scheduled if their time has not come."""

    ids: list[str]


class Replayed(_Record, tag="replayed"):
    """Dead letters with a new life: attempts from zero, history kept, the deadline lifted. One that waited for others waits again."""

    ids: list[str]


class Retired(_Record, tag="retired"):
    """Past their retention: they leave the queue (for the archive) and take no more events."""

    ids: list[str]


Progress = Leased | Completed | Failed | Unleased | Died | Cancelled | Due | Unblocked | Replayed | Retired

_published = msgspec.json.Decoder(list[StoredTaskIn])
_progress = msgspec.json.Decoder(list[Progress])
decode_published = _published.decode
"""The records of one batch of the published log."""
decode_progress = _progress.decode
"""The records of one batch of the progress log."""

encode_records = msgspec.json.Encoder().encode
"""A batch's records as JSON bytes: what stands behind ``"b":`` in a log line."""
