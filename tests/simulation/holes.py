"""Rules taken away, for the small worlds: each a change of a line of the source, and the scope in which the exploration must then find it.

H1 to H19 are the protocol's own names (docs/simulation.md). ``python -m simulation.holes`` prints the shortest trace of each.
"""

from __future__ import annotations

import ast
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from importlib import import_module
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple
from unittest.mock import patch

from msgspec.structs import replace

import jsonqueue
from faults.planted import BUGS
from jsonqueue.simulation.scopes import AGAIN, ONE, TWICE
from jsonqueue.simulation.small import Explorer, Faults, Scope, State, explore
from jsonqueue.simulation.small_state import CONFIG
from jsonqueue.simulation.small_world import Step
from jsonqueue.simulation.verdict import Violation
from jsonqueue.storage.log import LogWriter

_ANOTHER = 5
"""Who opens files beside the processes of the world."""
SOURCE = Path(jsonqueue.__file__).resolve().parent

# ── a line of the source, changed while the program runs ─────────────────────────────────────────────────────────────


@contextmanager
def changed(file: str, old: str, new: str) -> Iterator[None]:
    """With this text of this file replaced. The function that holds it gets other code; whoever imported it gets it too."""
    text = (SOURCE / file).read_text()
    assert text.count(old) == 1, f"{file}: the text to change is there {text.count(old)} times"
    name = _function_at(text, text[: text.index(old)].count("\n") + old.count("\n", 0, len(old) - len(old.lstrip("\n"))) + 1)
    function = _found(file, name)
    before = function.__code__
    after = _code_of(compile(text.replace(old, new), str(SOURCE / file), "exec", dont_inherit=True, flags=0), name)
    function.__code__ = after
    try:
        yield
    finally:
        function.__code__ = before


def _function_at(text: str, line: int) -> str:
    """The outermost function around a line, as ``Class.method`` or ``function``."""

    def within(body: list[ast.stmt], path: str) -> str:
        for node in body:
            if node.lineno <= line <= (node.end_lineno or 0):
                if isinstance(node, ast.FunctionDef):
                    return path + node.name
                if isinstance(node, ast.ClassDef):
                    return within(node.body, f"{path}{node.name}.")
        raise AssertionError(f"line {line} is in no function")

    return within(ast.parse(text).body, "")


def _found(file: str, name: str) -> Any:
    owner = import_module("jsonqueue." + file.removesuffix(".py").replace("/", "."))
    *classes, last = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    found = vars(owner)[last]
    found = getattr(found, "fget", None) or getattr(found, "__func__", found)
    return getattr(found, "__wrapped__", found)


def _code_of(code: CodeType, name: str) -> CodeType:
    def inner(outer: CodeType, part: str) -> CodeType:
        return next(const for const in outer.co_consts if isinstance(const, CodeType) and const.co_name == part)

    return reduce(inner, name.split("."), code)


# ── rules that are no line of one function ───────────────────────────────────────────────────────────────────────────


class _RestartsOne(Explorer):
    """After a failed fsync only the broker that saw it starts again."""

    restarts_both = False


class _ForgetsEarly(Explorer):
    """The PublisherBroker hears that a task has left as soon as the log says so, not when a durable queue.json does."""

    def _hear(self, state: State, what: tuple[Any, ...], planes: tuple[int, ...]) -> State:
        state = super()._hear(state, what, planes)
        publisher_broker = self.real.broker(state.pb)
        if what[0] == "frame" and publisher_broker is not None:
            known = dict(publisher_broker._admission._known)
            left = tuple(sorted((task_id, known[task_id]) for task_id in _gone(state) & known.keys()))
            if left and not state.forget:
                state = state._replace(forget=(("forget", left, max(known.values())),))
        return state


def _gone(state: State) -> set[str]:
    return {task_id for task_id, _ in state.settled}


class _IgnoresLocks(Explorer):
    """A PublisherBroker may start while an orphan of an earlier manager is still at work."""

    def _processes(self, state: State) -> Iterator[Step]:
        yield from super()._processes(state)
        if state.pb:
            for outcome in self.real.react(0, _ANOTHER, ("open pb",), self._case(state)):
                planes = list(state.planes)
                for group, plane in outcome.changes:
                    planes[group] = plane
                if outcome.end == "done":
                    yield "another publisher broker starts beside it", state._replace(planes=tuple(planes))


class _GoesOn(Explorer):
    """A starting writer appends to the newest segment, once it has synced it."""

    def _call(self, state: State, who: int, call: tuple[Any, ...], label: str = "") -> Iterator[Step]:
        with patch.object(LogWriter, "_begin", _goes_on(LogWriter._begin)):
            yield from super()._call(state, who, call, label)


def _goes_on(real: Any) -> Any:
    def begin(self: LogWriter, source: Any, end: Any) -> None:
        if source is None:
            real(self, source, end)
            return
        self._handle, self.epoch = self._files.open(source.segment.name), source.segment.epoch
        self._files.truncate(self._handle, end.offset)
        self._files.sync(self._handle)
        self._head_size, self._first, self.bytes = source.head.size, source.segment.first, end.offset

    return begin


# ── the rules ────────────────────────────────────────────────────────────────────────────────────────────────────────

_RETIRES_AT_ONCE = replace(CONFIG, finished_keep_ms=0)

_CUT = Scope(ONE, 1, Faults(cuts=1), pauses=frozenset({"write"}))
_CUTS = Scope(ONE, 1, Faults(kills=1, cuts=1))
_SYNC_CUT = Scope(TWICE, 0, Faults(syncs=1, cuts=1))
_FOLD_CUT = Scope(ONE, 1, Faults(cuts=1, checkpoints=1), pauses=frozenset({"fold", "write"}))
_ARCHIVE_CUT = Scope(ONE, 1, Faults(cuts=1, checkpoints=1), _RETIRES_AT_ONCE)
_FOLDS = Scope(ONE, 1, Faults(kills=1, checkpoints=2), _RETIRES_AT_ONCE)
_THRICE = Scope(((("t1",), ("t1",), ("t1",)),), 1, Faults(kills=1, checkpoints=1), _RETIRES_AT_ONCE)
_AGAIN_CUT = Scope(AGAIN, 1, Faults(cuts=1), _RETIRES_AT_ONCE)
_OPEN = Scope(ONE, 0, Faults(kills=1, checkpoints=1), pauses=frozenset({"open", "fold"}))
_STOP = Scope(((("t1",), ("t2",)),), 1, Faults(kills=1, stops=1))
_LEASE = Scope(ONE, 2, Faults(ticks=2))


class Hole(NamedTuple):
    """A rule taken away."""

    hole: str
    """The protocol's name for it, if it has one."""
    what: str
    scope: Scope
    file: str = ""
    old: str = ""
    new: str = ""
    explorer: type[Explorer] = Explorer


def _source(name: str) -> tuple[str, str, str]:
    """The change that the fault lanes plant under this name."""
    return next((bug.file, bug.old, bug.new) for bug in BUGS if bug.name == name)


_PB, _CB, _LOG = "broker/publisher_broker.py", "broker/consumer_broker.py", "storage/log.py"
_STORED = "first_task=self._admission.last_task + 1)\n"
_ANNOUNCED_EARLY = (_PB, _STORED, _STORED + "        self._announce(self.mark)\n")
_JUDGED = "        accepted = [task for verdict in verdicts for task in verdict.accepted]\n"

HOLES = (
    Hole("H1", "a starting ConsumerBroker reads beyond the mark", _CUT, _CB,
         "load_state(self._files, published_through=Position(mark.number, mark.epoch))", "load_state(self._files)"),
    Hole("H1", "the mark is announced before the fsync", _CUT, *_ANNOUNCED_EARLY),
    Hole("H2", "a duplicate is answered before what it rests on is durable", Scope(TWICE, 0, Faults(cuts=1)), _PB,
         _JUDGED, _JUDGED + "        _ = [self._answer([one], [its], send) for one, its in zip(writes, verdicts) if not its.accepted]\n"),
    Hole("H2", "a publish is answered before its fsync", _CUTS, *_source("publish acknowledged before its fsync")),
    Hole("H2", "a completion is answered before its fsync", _CUTS, *_source("completion acknowledged before its fsync")),
    Hole("H3", "what a starting writer read is not made durable", _CUTS, *_source("a started log is not synced before it is used")),
    Hole("H4", "a starting writer goes on in its predecessor's file, and trusts an fsync of it", _SYNC_CUT, explorer=_GoesOn),
    Hole("H5", "only one broker starts again after a failed fsync, and the other has read beyond the mark",
         Scope(ONE, 1, Faults(syncs=1), pauses=frozenset({"write"})), *_ANNOUNCED_EARLY, _RestartsOne),
    Hole("H8", "numbers go on from the log only", _STOP, *_source("numbers go on from the log only, not from queue.json")),
    Hole("H8", "task numbers go on from the log only", _STOP, *_source("the last task number is not kept in queue.json")),
    Hole("H9", "the epoch is not raised", _CUTS, *_source("the epoch is not raised")),
    Hole("H9", "the epoch goes on from the log only", _STOP, *_source("the epoch goes on from the log only, not from queue.json")),
    Hole("H9", "queue.json does not keep the epochs", _STOP, *_source("the epochs are not kept in queue.json")),
    Hole("H9", "a token without its epoch", _CUTS, *_source("a token without its epoch")),
    Hole("H10", "ids are forgotten as soon as the log says that they left", _AGAIN_CUT, explorer=_ForgetsEarly),
    Hole("H11", "a stale message drops a new task's id", _THRICE, *_source("a forget message about an earlier task drops a new one's id")),
    Hole("H12", "what was read while a checkpoint passed is not read again", _OPEN, _LOG,
         "            if _generation(files) == before:\n                raise\n            continue", "            raise"),
    Hole("H13", "a broker does not wait for its lock: an orphan still writes", Scope(ONE, 0), explorer=_IgnoresLocks),
    Hole("H15", "a new segment is used before its name is durable", _FOLD_CUT, *_source("a rotated segment's name is not synced")),
    Hole("H16", "an empty segment is rotated", _FOLDS, *_source("an empty segment is rotated")),
    Hole("H17", "segments are deleted whatever queue.json holds", _FOLDS, *_source("segments are deleted whatever queue.json holds")),
    Hole("H18", "published batches beyond the cut are folded", _FOLD_CUT, "storage/checkpoint.py",
         "max(cut.published, header.published_through))\n", "ends_of(files, header).published)\n"),
    Hole("H19", "the archive is not cut to what is committed of it", _FOLDS, *_source("the archive is not cut to what is committed of it")),
    # What else bears load, by the protocol's own account.
    *(Hole("", name, scope, *_source(name)) for name, scope in (
        ("a started log's name is not synced", _CUTS),
        ("the new queue.json is not synced", _FOLD_CUT),
        ("segments are deleted before queue.json is replaced", _FOLD_CUT),
        ("segments are deleted before queue.json's name is synced", _FOLD_CUT),
        ("the archive is not synced", _ARCHIVE_CUT),
        ("the archive's name is not synced", _ARCHIVE_CUT),
        ("ids in queue.json may be published again", Scope(TWICE, 0, Faults(kills=1, checkpoints=1))),
        ("ids in the log may be published again", Scope(TWICE, 0, Faults(kills=1))),
        ("retired tasks are not archived", _FOLDS),
        ("tasks that nothing happened to are not folded", Scope(ONE, 0, Faults(kills=1, checkpoints=1))),
        ("a clean stop is not told from a lost log", _STOP),
        ("a late completion is taken", _LEASE),
        ("what a dead consumer held is not returned", Scope(ONE, 1, Faults(kills=1))),
        ("a restart forgets what was ready", Scope(ONE, 1, Faults(kills=1))),
        ("a restart hands out what consumers hold", Scope(ONE, 2, Faults(kills=1))),
        ("a repeated completion is called stale", Scope(ONE, 1, Faults(kills=1))),
        ("a retired task stays", _FOLDS),
    )),
    Hole("", "a checkpoint leans on a queue.json whose name is not durable", Scope(ONE, 0, Faults(kills=1, cuts=1, checkpoints=2)),
         *_source("a checkpoint leans on a queue.json that another one left half named")),
    Hole("", "an expired lease is not handed on", _LEASE, "core/dispatching.py",
         "        self._lose(expired, Outcome.EXPIRED, now)\n", ""),
    Hole("", "a task that failed is not tried again", Scope(ONE, 1, Faults(fails=1, ticks=1)), "core/dispatching.py",
         "            self._commit(Due([task.id for task in due]), now)", "            pass"),
)  # fmt: skip

IMMUNE = (
    Hole("H5", "only one broker starts again after a failed fsync", Scope(ONE, 1, Faults(syncs=1, cuts=1), pauses=frozenset({"write"})),
         explorer=_RestartsOne),
)  # fmt: skip
"""Rules that this design could do without: with them taken away, the scope is explored to its end, and nothing is found."""


def run(hole: Hole) -> str:
    """What the exploration finds, with its shortest trace; empty: nothing."""
    try:
        if hole.old:
            with changed(hole.file, hole.old, hole.new):
                explore(hole.scope, explorer=hole.explorer)
        else:
            explore(hole.scope, explorer=hole.explorer)
    except Violation as found:
        return "\n".join([str(found), *getattr(found, "__notes__", [])])
    return ""


def main() -> None:
    wanted = sys.argv[1:]
    if unknown := set(wanted) - {hole.hole for hole in (*HOLES, *IMMUNE)}:
        sys.exit(f"no such hole: {', '.join(sorted(unknown))}")
    wrong = 0
    for hole in (*HOLES, *IMMUNE):
        if wanted and hole.hole not in wanted:
            continue
        began = time.process_time()
        try:
            found = run(hole)
        except AssertionError as error:
            found, wrong = f"CANNOT BE PLANTED: {error}", wrong + 1
        else:
            wrong += bool(found) is (hole in IMMUNE)
        print(f"\n{hole.hole} {hole.what} ({time.process_time() - began:.1f} s)\n{found or 'NOT FOUND'}", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
