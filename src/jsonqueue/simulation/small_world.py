"""What can happen in a small world: the steps from one of its states to the next. :mod:`~jsonqueue.simulation.small` walks them all.

A state of the world is a value: the processes, the three planes of the disk, what is in each Pipe, what each client and the manager know,
how many faults are still to come. What the code of production does in it, :mod:`~jsonqueue.simulation.reactions` says; what each step means
for whom is here.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, product
from typing import Any

from jsonqueue.event import Assign, Settled
from jsonqueue.simulation.account import Account
from jsonqueue.simulation.calls import CONSUMER_BROKER, MANAGER, PUBLISHER_BROKER, Calls
from jsonqueue.simulation.cast import PRODUCTION, Cast
from jsonqueue.simulation.reactions import Case, Outcome, Reactions
from jsonqueue.simulation.small_state import (
    FROM_CB,
    Consumer,
    Faults,
    Scope,
    State,
    changed,
    completion,
    disturbed,
    failure,
    heard,
    joined,
    peer_of,
    publisher,
    saying,
    slot_of,
    told,
    with_consumer,
    with_slot,
)
from jsonqueue.simulation.still import EMPTY, GROUPS, Op, cuts_of, orphaned
from jsonqueue.simulation.verdict import Violation

__all__ = ["Explorer", "Step"]


_ONCE = "interrupted once"
Step = tuple[str, State]


class Explorer:
    """One scope, explored."""

    restarts_both = True
    """After a failed fsync."""

    def __init__(self, scope: Scope, cast: Cast = PRODUCTION) -> None:
        self.scope = scope
        mortal = bool(scope.faults.kills or scope.faults.cuts)
        self.real = Reactions(scope.config, self._pauses, mortal=mortal)
        self.real.calls.update(Calls(cast, self.real).named())
        # An id is refused for as long as its task is kept: a publisher that asks again later than that stores it again.
        retries = sum(scope.faults[:3]) if scope.config.finished_keep_ms == 0 or scope.faults.ticks else 0
        self.account = Account(self.real, scope.writes, retries=retries)
        self._cuts: dict[int, list[tuple[str, int]]] = {}
        self._orphaned: dict[tuple[int, int], int] = {}
        self._sound: set[State] = set()
        self.doing = ""
        """What is being tried out, for the trace of a violation."""
        self.fairly: list[str] = []
        """What a fair schedule did."""
        empty = self.real.plane(EMPTY)
        publishers = ((0, "idle"),) * len(scope.writes)
        self.start = State(
            0, 0, 0, (empty,) * len(GROUPS), (), None, (), publishers, (Consumer(),) * scope.consumers, (), scope.faults, 0, False,
            frozenset(), frozenset(), 0,
        )  # fmt: skip

    def _pauses(self, call: tuple[Any, ...], op: Op) -> bool:
        what, pauses = call[0], self.scope.pauses
        if what == "write":
            return "write" in pauses and op.what == "sync"
        if what in {"fold", "stop"}:
            return "fold" in pauses and op.what in {"rename", "unlink"}
        return call[-1] == (_ONCE, op.number) and op.what == "list"

    def _interrupted(self, state: State, who: int, call: tuple[Any, ...], label: str) -> Iterator[Step]:
        """A broker's start, while a checkpoint is made: as a whole, and with one pause, before each of its looks into the folder."""
        yield from self._call(state, who, call, label)
        if "open" not in self.scope.pauses or state.phase[:1] not in {("cut",), ("fold",)}:
            return
        for number in count():
            once = (*call, (_ONCE, number))
            outcomes = self.real.react(slot_of(state, who), who, once, self._case(state))
            if outcomes[0].end != "paused":
                return
            yield from self._outcomes(state, who, once, outcomes, label)

    # ── what can happen next ─────────────────────────────────────────────────────────────────────────────────────────

    def next(self, state: State) -> Iterator[Step]:
        """Everything, with what it leads to."""
        yield from self.works(state)
        yield from self.faults(state)

    def works(self, state: State, *, for_ever: bool = False) -> Iterator[Step]:
        """What happens without anything going wrong, in the order of a fair schedule; ``for_ever``: time does not stop either."""
        yield from self._processes(state)
        yield from self._publishing(state)
        for index in range(len(state.consumers)):
            yield from self._consuming(state, index)
        yield from self._turns(state)
        yield from self._checkpointing(state)
        yield from self._time(state, for_ever)

    def _case(self, state: State) -> Case:
        return Case(state.planes, state.ms, frozenset(10 * index + me.life for index, me in enumerate(state.consumers)))

    def _call(self, state: State, who: int, call: tuple[Any, ...], label: str = "") -> Iterator[Step]:
        """A process is called; all that may come of it."""
        slot = slot_of(state, who)
        case = self._case(state)
        outcomes = self.real.go_on(slot, case) if self.real.call_of(slot) else self.real.react(slot, who, call, case)
        label = self.doing = label or " ".join(str(part) for part in call)
        yield from self._outcomes(state, who, call, outcomes, label)
        if state.left.syncs:
            fewer = state._replace(left=state.left._replace(syncs=state.left.syncs - 1))
            for number in range(outcomes[0].syncs):
                for dropped in (False, True):
                    failed = self.real.react(slot, who, call, case, (number, dropped))
                    what = f"{label}: fsync {number + 1} fails, its pages are {'thrown away' if dropped else 'taken for clean'}"
                    yield from self._outcomes(fewer, who, call, failed, what)

    def _outcomes(self, state: State, who: int, call: tuple[Any, ...], outcomes: list[Outcome], label: str) -> Iterator[Step]:
        for outcome in outcomes:
            if outcome.end == "died" and not (state.left.kills or state.left.cuts):
                continue
            then = state
            for what, changes in outcome.said:
                then = self._hear(then, what, changed(state.planes, changes))
            then = then._replace(planes=changed(state.planes, outcome.changes))
            then = with_slot(then, who, outcome.slot)
            yield from self._ended(then, who, call, outcome, label)

    def _ended(self, then: State, who: int, call: tuple[Any, ...], outcome: Outcome, label: str) -> Iterator[Step]:
        if outcome.end == "died":
            label += f", and dies before {outcome.why}"
            if then.left.kills:
                yield label, self._without(then, who)._replace(left=then.left._replace(kills=then.left.kills - 1))
            if then.left.cuts:
                yield from self._power_cut(then, f"{label}, by a power cut")
        elif outcome.end == "exit 74":
            then = self._without(then, who)
            yield f"{label}: exit 74", then._replace(anew=self.restarts_both and who != MANAGER and bool(then.pb or then.cb))
        elif outcome.end == "done":
            yield label, self._done(then, call, outcome)
        elif outcome.end == "paused":
            yield f"{label} …", then
        elif who == MANAGER and outcome.end == "refused" and then.phase[-1] == "disturbed":
            yield f"{label}: given up, since a broker started meanwhile", self._without(then, who)
        else:
            raise Violation(outcome.end, f"{label}: {outcome.why}")

    def _done(self, then: State, call: tuple[Any, ...], outcome: Outcome) -> State:
        if call[0] == "mark":
            self.account.loaded(then.planes, then.acknowledged, then.settled)
        elif call[0] in {"fold", "stop"}:
            self.account.loaded(then.planes, then.acknowledged, then.settled)
            if any(it.what[0] == "left" and it.what[1] for it in outcome.said):
                self.account.archived(then.planes)
            then = then._replace(phase=())
        elif call[0] == "open pb":
            broker = self.real.broker(then.pb)
            then = then._replace(mark=(broker.mark.number, broker.mark.epoch))
        return then

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _processes(self, state: State) -> Iterator[Step]:
        if state.anew:
            yield (
                "both brokers are to start again",
                self._without(self._without(state, PUBLISHER_BROKER), CONSUMER_BROKER)._replace(anew=False),
            )
            return
        for who in (PUBLISHER_BROKER, CONSUMER_BROKER, MANAGER):
            if call := self.real.call_of(slot_of(state, who)):
                yield from self._call(state, who, call, f"{call[0]} goes on")
        if state.phase[:1] != ("stop",):
            for who, name in ((PUBLISHER_BROKER, "open pb"), (CONSUMER_BROKER, "open cb")):
                if not slot_of(state, who):
                    yield from self._interrupted(disturbed(state), who, (name,), name)

    def _without(self, state: State, who: int) -> State:
        """The process is gone: with it what it had open, and its Pipes with what was in them."""
        planes = tuple([self._closed(number, who) for number in state.planes])
        state = with_slot(state, who, 0)._replace(planes=planes)
        if who == MANAGER:
            return state._replace(phase=())
        state = state._replace(phase=()) if state.phase == ("sealed",) else disturbed(state)
        if who == PUBLISHER_BROKER:  # an answer that it gave is in the Pipe still
            return state._replace(publishers=tuple([(at, "idle" if how == "asked" else how) for at, how in state.publishers]))
        consumers = tuple([me._replace(joined=False, up=(), pipe=0) for me in state.consumers])
        return state._replace(consumers=consumers, hung_up=())

    def _closed(self, plane: int, who: int) -> int:
        key = (plane, who)
        if key not in self._orphaned:
            self._orphaned[key] = self.real.plane(orphaned(self.real.planes[plane], who))
        return self._orphaned[key]

    # ── publishers ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _publishing(self, state: State) -> Iterator[Step]:
        asked = []
        for index, (at, stands) in enumerate(state.publishers):
            if at == len(self.scope.writes[index]):
                continue
            if stands == "idle":
                yield f"p{index} publishes {self._batch(index, at)}", publisher(state, index, (at, "asked"))
            elif stands == "answered":
                acknowledged = state.acknowledged | set(self._batch(index, at))
                yield f"p{index} hears that it is durable", publisher(state, index, (at + 1, "idle"))._replace(acknowledged=acknowledged)
            else:
                asked.append((index, self._batch(index, at)))
        if self.real.broker(state.pb) is not None:
            for one in asked:
                yield from self._call(state, PUBLISHER_BROKER, ("write", (one,)))
            if len(asked) > 1:
                yield from self._call(state, PUBLISHER_BROKER, ("write", tuple(asked)))

    def _batch(self, index: int, at: int) -> tuple[str, ...]:
        return self.scope.writes[index][at]

    # ── consumers ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _consuming(self, state: State, index: int) -> Iterator[Step]:
        me, broker = state.consumers[index], self.real.broker(state.cb)
        if not me.joined and not me.down:
            if broker is not None and broker.ready:
                yield f"c{index} joins", with_consumer(state, index, joined(me, index))
            return
        if me.down:
            event = FROM_CB(me.down[0])
            yield f"c{index} hears {told(event)}", with_consumer(state, index, heard(me._replace(down=me.down[1:]), event))
        if me.held and me.joined:
            yield f"c{index} completes {me.held[0]}", with_consumer(state, index, saying(me, me.held, completion(me.held)))
            if state.left.fails:
                fewer = state._replace(left=state.left._replace(fails=state.left.fails - 1))
                yield f"c{index} fails {me.held[0]}", with_consumer(fewer, index, saying(me, me.held, failure(me.held)))
        if me.up and broker is not None:
            rest = with_consumer(state, index, me._replace(up=me.up[1:]))
            yield from self._call(
                rest, CONSUMER_BROKER, ("turn", peer_of(me, index), me.up[0]), f"cb reads of c{index} {me.up[0].decode()}"
            )

    # ── what the ConsumerBroker does beside that ─────────────────────────────────────────────────────────────────────

    def _turns(self, state: State) -> Iterator[Step]:
        broker = self.real.broker(state.cb)
        if broker is None:
            return
        # A broker that has loaded the queue may hear of a mark late; one that has not waits for a PublisherBroker that lives.
        serves = bool(state.pb) and self.real.call_of(state.pb)[:1] != ("open pb",)
        if state.mark and (state.mark[0] > broker._read.number if broker.ready else serves):
            tell = self._call if broker.ready else self._interrupted
            yield from tell(state, CONSUMER_BROKER, ("mark", *state.mark), f"mark {state.mark[0]} {state.mark[1]}")
        for at, peer in enumerate(state.hung_up):
            rest = state._replace(hung_up=(*state.hung_up[:at], *state.hung_up[at + 1 :]))
            yield from self._call(rest, CONSUMER_BROKER, ("hung up", peer))

    def _hear(self, state: State, what: tuple[Any, ...], planes: tuple[int, ...]) -> State:
        """What a process said reaches whoever it is meant for; ``planes``: the disk at that moment."""
        kind = what[0]
        if kind == "mark":
            return state._replace(mark=what[1:])
        if kind == "written":
            index, at = what[1], state.publishers[what[1]][0]
            self.account.stored(planes, self._batch(index, at))
            return publisher(state, index, (at, "answered"))
        if kind == "cut":
            return state._replace(phase=what if what[1:] else ())
        if kind == "left":
            return state._replace(forget=(*state.forget, ("forget", *what[1:])) if what[1] else state.forget)
        if kind == "sealed":
            return state._replace(phase=("sealed",))
        return self._deliver(state, what[1], what[2], planes)

    def _deliver(self, state: State, peer: int, frame: bytes, planes: tuple[int, ...]) -> State:
        event = FROM_CB(frame)
        index = peer % 100 - 1
        if isinstance(event, Assign):
            first = event.tasks[0].token
            if first <= state.token:
                raise Violation("two leases", f"token {first} came again")
            state = state._replace(token=first)
        me = state.consumers[index]
        if not me.joined or peer_of(me, index) != peer:
            return state
        if isinstance(event, Settled):
            for held, outcome in me.unsettled:
                if held[1] == event.request and outcome == completion(held):
                    state = self.account.settled(state, held, planes, stale=bool(event.stale))
        return with_consumer(state, index, me._replace(down=(*me.down, frame)))

    # ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _checkpointing(self, state: State) -> Iterator[Step]:
        pb, cb = self.real.broker(state.pb), self.real.broker(state.cb)
        if pb is not None:
            for at, message in enumerate(state.forget):
                rest = state._replace(forget=(*state.forget[:at], *state.forget[at + 1 :]))
                yield from self._call(rest, PUBLISHER_BROKER, message)
        if state.phase == () and not state.manager and cb is not None and cb.ready and pb is not None:
            left = state.left
            if left.checkpoints:
                fewer = state._replace(left=left._replace(checkpoints=left.checkpoints - 1))
                yield from self._call(fewer, PUBLISHER_BROKER, ("rotate",))
            if left.stops:
                stopped = self._without(self._without(state, PUBLISHER_BROKER), CONSUMER_BROKER)
                stopped = stopped._replace(phase=("stop",), left=left._replace(stops=left.stops - 1))
                yield from self._call(stopped, MANAGER, ("stop", state.ms))
        elif state.phase == ("sealed",) and cb is not None:
            yield from self._call(state, CONSUMER_BROKER, ("cut",))
        elif state.phase[:1] == ("cut",):
            folding = state._replace(phase=("fold", *state.phase[3:]))
            yield from self._call(folding, MANAGER, ("fold", *state.phase[1:3], state.ms))

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _time(self, state: State, for_ever: bool) -> Iterator[Step]:
        if not (state.left.ticks or for_ever) or self.real.broker(state.cb) is None:
            return
        due = self.account.due_ms(state.cb, state.ms)
        if due is not None and due <= state.ms:
            yield from self._call(state, CONSUMER_BROKER, ("tick",))
        elif due is not None:
            left = state.left._replace(ticks=max(0, state.left.ticks - 1))
            yield f"{due - state.ms} ms pass", state._replace(ms=due, left=left)

    # ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────────

    def faults(self, state: State) -> Iterator[Step]:
        """What goes wrong between two operations. (What goes wrong at one is among what comes of it.)"""
        left = state.left
        if left.kills:
            fewer = state._replace(left=left._replace(kills=left.kills - 1))
            for who, name in ((PUBLISHER_BROKER, "publisher"), (CONSUMER_BROKER, "consumer")):
                if slot_of(state, who):
                    yield f"kill the {name} broker", self._without(fewer, who)
            if state.manager or state.forget or state.phase:
                yield "kill the manager", self._without(fewer, MANAGER)._replace(forget=())
            for index, me in enumerate(state.consumers):
                if me.joined:
                    new = Consumer(life=me.life + 1, pipe=me.pipe + 1)
                    yield f"kill c{index}", with_consumer(fewer, index, new)._replace(hung_up=(*state.hung_up, peer_of(me, index)))
        if left.cuts:
            yield from self._power_cut(state, "power cut")

    def _power_cut(self, state: State, label: str) -> Iterator[Step]:
        consumers = tuple([Consumer(life=me.life + 1) for me in state.consumers])
        publishers = tuple([(at, "idle") for at, _ in state.publishers])
        then = state._replace(
            pb=0, cb=0, manager=0, phase=(), mark=None, forget=(), publishers=publishers, consumers=consumers, hung_up=(), anew=False,
            left=state.left._replace(cuts=state.left.cuts - 1),
        )  # fmt: skip
        for chosen in product(*[self._cut(number) for number in state.planes]):
            left = ", ".join(f"{group}: {what}" for group, (what, _) in zip(GROUPS, chosen, strict=True) if what)
            yield label + (f" ({left})" if left else ""), then._replace(planes=tuple([plane for _, plane in chosen]))

    def _cut(self, plane: int) -> list[tuple[str, int]]:
        if plane not in self._cuts:
            left = cuts_of(self.real.planes[plane], torn=self.scope.torn)
            self._cuts[plane] = [(what if len(left) > 1 else "", self.real.plane(it)) for it, what in left.items()]
        return self._cuts[plane]

    # ── liveness ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def check_ends(self, state: State) -> None:
        """From here on nothing goes wrong, and a fair schedule runs: it ends with everything done. Raises :class:`Violation`."""
        path: dict[State, None] = {}
        self.fairly = []
        # What could still have gone wrong makes no difference to it.
        state = state._replace(left=Faults(checkpoints=state.left.checkpoints, stops=state.left.stops))
        while state not in self._sound:
            if state in path:
                raise Violation("deadlock", "a fair schedule without faults comes back to where it was")
            path[state] = None
            if self.account.is_done(state):
                break
            step = next(self.works(state, for_ever=True), None)
            if step is None:
                raise Violation("deadlock", "nothing is left to happen, and not everything is done")
            self.fairly.append(f"then: {step[0]}")
            state = step[1]
        self._sound.update(path)
