"""The manager's one loop: it starts the two brokers, hears them, starts them again, lets clients in, and stops everything in order.

It only supervises: tasks pass elsewhere. All that happens here happens in one thread; other threads bring their wishes with :meth:`submit`.

A broker that dies is started again at once, three times within a minute. The other one lives on and gets the new end of the marks Pipe. Two
exceptions: where a broker that starts found damage (exit status 65, 77, 78) starting again would find it again, so everything stops with
that error; and after a failed fsync (74) both brokers start again, since one may have read what the other one's disk has lost.

Two things are no death, and waited for as long as it takes: a broker that finds no room on the disk waits for some by itself, and where no
process can be had for a broker (no memory, no open files, too many processes) it is tried again, at growing intervals.

To stop: the PublisherBroker drains and ends; then the ConsumerBroker has all the marks there will ever be, hands out nothing more, waits
(for the grace, at most) until consumers have settled what they hold, and ends; then, with nobody left who writes, the logs are folded into
queue.json.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from enum import Enum, auto
from functools import partial

from jsonqueue.broker.admission import HELD_BACK_MS, Admission, not_up
from jsonqueue.broker.checkpointing import Checkpointing
from jsonqueue.broker.child import Child, ChildState
from jsonqueue.broker.crew import ROLES, Crew, other_than
from jsonqueue.broker.narration import Narration
from jsonqueue.broker.questions import Questions
from jsonqueue.broker.reception import Guest, Reception
from jsonqueue.broker.restarts import DISK_FAILED
from jsonqueue.channel.control import Counters, Crowded, Draining, Failed, News, Ready, Rotated, Stop, Waiting
from jsonqueue.channel.registration import Action, Listener, ManagerStatus, Operate, Register, Report
from jsonqueue.clock import Clock
from jsonqueue.config import Config
from jsonqueue.errors import ConnectionClosed, JsonQueueError, LockLost, words_of
from jsonqueue.event import EventOwner
from jsonqueue.storage.checkpoint import final_checkpoint
from jsonqueue.storage.files import Files
from jsonqueue.storage.locks import hold

__all__ = ["Supervisor"]

_CROWDED_MS = 1_000
"""How long nobody is sent to a broker that has no room for more clients."""
_REAP_MS = 10
_DYING_MAX_MS = 2_000
_LEAVE_MS = 2_000
"""What a ConsumerBroker has, when the grace is over, to say its last answers and close its log."""
_PUBLISHER, _CONSUMER = ROLES


class _Phase(Enum):
    SERVING = auto()
    PUBLISHER_STOPS = auto()
    CONSUMER_STOPS = auto()
    ENDED = auto()


class Supervisor:
    """Serves one folder, whose ``queue.lock`` the caller holds, from :meth:`begin` to the end of :meth:`run`."""

    def __init__(
        self,
        queue_dir: str,
        files: Files,
        config: Config,
        clock: Clock,
        *,
        grace_ms: int,
        check_lock: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        """``check_lock``: raises LockLost once the folder is no longer ours. ``on_change``: called when it is ready, or has ended."""
        self.ready = threading.Event()
        """Set when both brokers have been ready once, or when it has ended."""
        self.ended = threading.Event()
        self.error: JsonQueueError | None = None
        """What stopped it, if it was not asked to."""
        self._queue_dir = queue_dir
        self._files = files
        self._config = config
        self._clock = clock
        self._grace_ms = grace_ms
        self._check_lock = check_lock
        self._on_change = on_change
        self._say = Narration(queue_dir)
        self._phase = _Phase.SERVING
        self._at_once = False
        self._stop_until_ms = 0
        self._started_ms, self._started_wall_ms = clock.monotonic_ms(), clock.wall_ms()
        self._selector = selectors.DefaultSelector()
        self._crew = Crew(queue_dir, config, clock, self._say, self._selector, self._serve)
        self._wishes: deque[Callable[[], None]] = deque()
        self._woken, self._waker = socket.socketpair()
        self._questions = Questions(clock, self.status, self._crew.post)
        self._reception: Reception | None = None
        self._admission: Admission | None = None
        self._checkpointing = Checkpointing(files, config, clock, self._say, post=self._crew.post, submit=self.submit, on_damage=self._fail)

    # ── from other threads ───────────────────────────────────────────────────────────────────────────────────────────

    def submit(self, wish: Callable[[], None]) -> None:
        """Have this done in the supervisor's thread."""
        self._wishes.append(wish)
        with contextlib.suppress(OSError):  # Full: it wakes up anyway. Closed: it has ended, and nothing is done any more.
            self._waker.send(b"!")

    def stop(self, *, at_once: bool = False) -> None:
        """Stop: in order, or at once (no draining and no last checkpoint; what was acknowledged is safe in the logs either way)."""
        self.submit(self._stop_at_once if at_once else self._begin_to_stop)

    def ask(self, action: Action, answer: Callable[[Report], None]) -> None:
        """What an operator asks; answered from the supervisor's thread."""
        self.submit(lambda: self._operate(action, answer))

    # ── life ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def begin(self) -> None:
        """Listen, and start both brokers. If this raises, nothing is left behind."""
        self._woken.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._wake_up)
        try:
            listener = Listener(self._queue_dir)
            self._reception = Reception(self._selector, listener, self._clock, self._say, self._receive)
            self._admission = Admission(self._reception, self._crew, self._config, self._clock)
            self._crew.start_both()
        except BaseException:
            self._clean_up()
            raise
        self._say.serving()

    def abandon(self) -> None:
        """In place of :meth:`run`: leave nothing behind."""
        self._clean_up()

    def run(self) -> None:
        """Serve until told to stop, or until something makes it."""
        try:
            while self._phase is not _Phase.ENDED:
                self._turn()
            self._fold_all()
        except JsonQueueError as error:
            self._remember(error)
        except Exception as error:
            self._remember(JsonQueueError(f"the manager failed: {error!r}"))
            raise
        finally:
            self._clean_up()
            self._say.stopped()
            self.ended.set()
            self._release_waiting()

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._timeout()):
            # An earlier one of this round may have unregistered it.
            if self._selector.get_map().get(key.fd) is key:
                key.data()
        self._tick(self._clock.monotonic_ms())

    def _timeout(self) -> float | None:
        due_ms = [self._questions.next_due_ms(), self._next_look_ms()]
        if self._phase is _Phase.SERVING:
            assert self._reception is not None
            due_ms += [self._checkpointing.next_due_ms(), self._reception.next_due_ms(), self._crew.postponed.next_due_ms()]
        earliest_ms = min((ms for ms in due_ms if ms is not None), default=None)
        return None if earliest_ms is None else max(0, earliest_ms - self._clock.monotonic_ms()) / 1000

    def _tick(self, now_ms: int) -> None:
        for child in self._crew.dying:
            if self._crew.children.get(child.role) is child:  # One whose disk failed takes the other along, and both are anew by now.
                self._reap(child, now_ms)
        self._questions.tick(now_ms)
        if self._phase is _Phase.SERVING:
            assert self._reception is not None
            self._reception.tick(now_ms)
            self._start_postponed(now_ms)
            self._checkpointing.tick(now_ms)
        else:
            self._go_on_stopping(now_ms)

    def _next_look_ms(self) -> int | None:
        if self._crew.dying:
            return self._clock.monotonic_ms() + _REAP_MS
        return None if self._phase is _Phase.SERVING else self._stop_until_ms

    def _wake_up(self) -> None:
        self._woken.recv(4096)
        self._grant_wishes()

    def _grant_wishes(self) -> None:
        while self._wishes:
            self._wishes.popleft()()

    # ── the brokers ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _start_postponed(self, now_ms: int) -> None:
        if due := self._crew.postponed.take_due(now_ms):
            self._checkpointing.abandon(_died(due[0]))  # It may have asked one that was not there.
            self._crew.start_again(due)

    def _serve(self, child: Child) -> None:
        try:
            for news in child.hear():
                self._learn(child, news)
        except ConnectionClosed:
            self._selector.unregister(child.control)
            child.hung_up(self._clock.monotonic_ms())
            self._checkpointing.abandon(_died(child.role))
            return
        with contextlib.suppress(ConnectionClosed):  # It has ended. What it said last is still to be read, and then the end of its Pipe.
            child.control.flush()
        if child.state is not ChildState.DYING and not child.control.closed:
            self._crew.mind_backlog(child)

    def _learn(self, child: Child, news: News) -> None:
        match news:
            case Ready():
                self._became_ready(child, news.epoch)
            case Waiting():
                self._waits(child, news.why)
            case Crowded():
                self._became_crowded(child, news.why)
            case Rotated():
                self._checkpointing.rotated(child.role, news)
            case Counters():
                child.peers, child.counters = news.peers, news.counters
                self._questions.answered(child.role, news.request)
            case Draining():
                self._say.draining(news.held, grace_ms=self._grace_ms)
            case Failed():
                child.last_words = news

    def _became_ready(self, child: Child, epoch: int) -> None:
        child.state, child.epoch, child.waits_for = ChildState.READY, epoch, ""
        self._say.broker_ready(child.role, pid=child.pid, epoch=epoch, took_ms=self._clock.monotonic_ms() - child.started_ms)
        assert self._admission is not None
        self._admission.let_in_held_back()
        if not self.ready.is_set() and self._crew.is_ready:
            self._both_became_ready()

    def _both_became_ready(self) -> None:
        if self._files.identity("queue.json") is None:
            # A new queue is there to be read from its first moment on, empty as it is.
            self._checkpointing.now(lambda why: self._release_waiting())
        else:
            self._release_waiting()

    def _release_waiting(self) -> None:
        """Whoever waits until it is ready goes on: it is, or it has ended."""
        self.ready.set()
        self._on_change()

    def _waits(self, child: Child, why: str) -> None:
        if why and child.state is not ChildState.WAITING:
            self._say.broker_waits(child.role, why)
        child.state, child.waits_for = ChildState.WAITING if why else ChildState.STARTING, why
        assert self._admission is not None
        self._admission.let_in_held_back()

    def _became_crowded(self, child: Child, why: str) -> None:
        """Whoever comes next is told so, rather than hung up on and back in the same moment."""
        if not child.crowded:
            self._say.broker_crowded(child.role, why)
        child.crowded, child.crowded_until_ms = why, self._clock.monotonic_ms() + _CROWDED_MS

    @property
    def waits_for(self) -> str:
        """Why a broker is not up that should be; empty when there is nothing to be said. From any thread."""
        return next((not_up(role, why) for role in ROLES if (why := self._crew.waits_for(role))), "")

    # ── a broker that died ───────────────────────────────────────────────────────────────────────────────────────────

    def _reap(self, child: Child, now_ms: int) -> None:
        status = child.reap()
        if status is None and now_ms - child.hung_up_ms >= _DYING_MAX_MS:
            self._say.broker_killed(child.role, pid=child.pid, why="it hung up, and did not end")
            status = child.kill()
        if status is not None:
            del self._crew.children[child.role]
            if self._phase is _Phase.SERVING:
                self._replace(child, status, now_ms)

    def _replace(self, child: Child, status: int, now_ms: int) -> None:
        last_words = child.last_words.message if child.last_words else ""
        restarts = self._crew.restarts[child.role]
        try:
            self._check_lock()
        except LockLost as error:
            self._fail(error)
            return
        if not restarts.allowed(status, now_ms, served=child.epoch > 0):
            self._fail(restarts.verdict(child, status))
            return
        self._say.broker_died(child.role, pid=child.pid, status=status, last_words=last_words)
        restarts.count += 1
        self._checkpointing.abandon(_died(child.role))
        if status == DISK_FAILED:
            self._say.both_restarted()
            self._crew.restarts[other_than(child.role)].count += 1
            self._crew.kill_all("its sibling's disk failed")
            self._crew.start_again(ROLES)
        else:
            self._crew.start_again([child.role])

    # ── who comes in ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _receive(self, guest: Guest, request: Register | Operate) -> None:
        assert self._reception is not None
        if isinstance(request, Register):
            assert self._admission is not None
            self._admission.let_in(guest, request)
        else:
            self._reception.keep_waiting(guest, 10 * HELD_BACK_MS)
            self._operate(request.action, partial(self._report, guest))

    def _report(self, guest: Guest, report: Report) -> None:
        if self._reception is not None and self._reception.is_here(guest):
            self._reception.answer(guest, report)

    # ── what operators ask ───────────────────────────────────────────────────────────────────────────────────────────

    def _operate(self, action: Action, answer: Callable[[Report], None]) -> None:
        if action == "status":
            ready = {role for role, child in self._crew.children.items() if child.state is ChildState.READY}
            self._questions.ask(ready, answer)
        elif action == "checkpoint":
            self._checkpointing.now(lambda why: answer(Report(not why, self.status(), why)))
        else:
            answer(Report(True, self.status(), "stopping"))
            self._begin_to_stop()

    def status(self) -> ManagerStatus:
        """How everything stands, with the figures that the brokers told last. In the supervisor's thread only."""
        now_ms = self._clock.monotonic_ms()
        checkpoints = self._checkpointing
        return ManagerStatus(
            queue_dir=self._queue_dir,
            pid=os.getpid(),
            started_ms=self._started_wall_ms,
            up_ms=now_ms - self._started_ms,
            durability=self._config.durability,
            config=self._config,
            brokers=self._crew.status(),
            checkpoints=checkpoints.count,
            checkpoint_ms=checkpoints.ended_ms,
            checkpoint_took_ms=checkpoints.took_ms,
            checkpoint_error=checkpoints.error,
            stopping=self._phase is not _Phase.SERVING,
        )

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _fail(self, error: JsonQueueError) -> None:
        """Stop because of this."""
        self._remember(error)
        self._begin_to_stop()

    def _remember(self, error: JsonQueueError) -> None:
        self._say.gave_up(error)
        self.error = self.error or error

    def _begin_to_stop(self) -> None:
        if self._phase is not _Phase.SERVING:
            return
        assert self._reception is not None
        self._say.stopping()
        self._phase = _Phase.PUBLISHER_STOPS
        self._stop_until_ms = self._clock.monotonic_ms() + self._grace_ms
        self._checkpointing.abandon("the brokers are stopping")
        self._reception.close()
        self._crew.post(_PUBLISHER, Stop())

    def _go_on_stopping(self, now_ms: int) -> None:
        if self._phase is _Phase.PUBLISHER_STOPS and self._has_stopped(_PUBLISHER, now_ms):
            self._phase = _Phase.CONSUMER_STOPS
            self._stop_until_ms = now_ms + self._grace_ms
            # The broker's own limit comes first, so that it ends in good order where consumers take longer than that.
            self._stop_until_ms += _LEAVE_MS
            self._crew.post(_CONSUMER, Stop(self._grace_ms))
        if self._phase is _Phase.CONSUMER_STOPS and self._has_stopped(_CONSUMER, now_ms):
            self._phase = _Phase.ENDED

    def _has_stopped(self, role: EventOwner, now_ms: int) -> bool:
        """Whether it is gone; when its time is up, it goes."""
        child = self._crew.children.get(role)
        if child is not None and child.state is not ChildState.DYING and now_ms >= self._stop_until_ms:
            self._say.broker_killed(role, pid=child.pid, why=f"it did not stop within {self._grace_ms} ms")
            self._selector.unregister(child.control)
            child.kill()
            del self._crew.children[role]
        return role not in self._crew.children

    def _stop_at_once(self) -> None:
        self._at_once = True
        self._phase = _Phase.ENDED

    def _fold_all(self) -> None:
        """The last checkpoint, with all locks held. Where it cannot be, nothing is lost: the next start reads the logs."""
        self._checkpointing.join()
        self._grant_wishes()  # What the folding thread has brought, and whoever asked at the last moment.
        if self._at_once or self.error is not None:
            return
        try:
            self._check_lock()  # The other two are found by the folder's name, which by now may be another folder's.
            with hold(self._queue_dir, "published", timeout=self._grace_ms / 1000), hold(self._queue_dir, "progress", timeout=1.0):
                final_checkpoint(self._files, config=self._config, at_ms=self._clock.wall_ms())
        except (JsonQueueError, OSError, MemoryError) as error:
            self._say.not_folded(words_of(error))
            if isinstance(error, JsonQueueError):
                self.error = error

    def _clean_up(self) -> None:
        if self._reception is not None:
            self._reception.close()
        self._crew.kill_all("the manager ends")
        self._checkpointing.join()  # Whoever gets the folder next must not meet its thread.
        self._checkpointing.abandon("the brokers have stopped")
        self._questions.close()
        self._selector.close()
        self._woken.close()
        self._waker.close()


def _died(role: EventOwner) -> str:
    return f"the {role.replace('_', ' ')} died"
