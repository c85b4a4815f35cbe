"""What is taken into the queue, and what is not."""

from __future__ import annotations

import pytest
from msgspec import Raw

from core.stage import given
from jsonqueue.config import Config
from jsonqueue.core.payload import nests_deeper
from jsonqueue.core.publishing import Admission
from jsonqueue.core.taken import TakenIds
from jsonqueue.event import Refusal
from jsonqueue.task import StoredTaskIn, TaskIn


@pytest.fixture
def admission() -> Admission:
    return Admission(TakenIds({"old": 4}), last_task=4, config=Config(payload_max_bytes=1_000, depth_max=8, tasks_max=6))


def _ids(tasks: list[StoredTaskIn]) -> list[str]:
    return [task.id for task in tasks]


def test_a_second_publish_of_an_id_makes_no_second_task(admission: Admission) -> None:
    """Known already, or twice in one batch: named as duplicates, by their place."""
    verdict = admission.decide([[given("a"), given("old"), given("b"), given("a")]])[0]
    assert (_ids(verdict.accepted), verdict.duplicates, verdict.refused) == (["a", "b"], [1, 3], [])
    admission.admit(verdict.accepted)
    assert admission.last_task == 6
    assert admission.decide([[given("a")]])[0].duplicates == [0]


def test_numbers_have_no_gaps(admission: Admission) -> None:
    """A write of nothing but duplicates takes no number."""
    admission.admit([])
    assert admission.last_task == 4
    admission.admit([given("a")])
    assert admission.last_task == 5


def test_falsy_payloads_are_payloads(admission: Admission) -> None:
    verdict = admission.decide([[given("a", 0), given("b", "")]])[0]
    assert _ids(verdict.accepted) == ["a", "b"]


def test_what_the_disk_did_not_take_is_not_taken(admission: Admission) -> None:
    """To judge a task changes nothing: only what is stored is admitted."""
    tasks = [given("a"), given("b")]
    assert admission.decide([tasks])[0].accepted == tasks
    assert admission.last_task == 4
    assert len(admission) == 1
    assert admission.decide([tasks])[0].duplicates == []


def test_writes_that_come_together_are_judged_one_after_the_other(admission: Admission) -> None:
    """What one has brought, the next one may wait for, and does not bring again; and it takes up room."""
    writes = [[given("a"), given("b")], [given("b"), given("c", after=("a",))], [given("d")], [given("e"), given("f")], [given("g")]]
    verdicts = admission.decide(writes)
    assert [_ids(verdict.accepted) for verdict in verdicts] == [["a", "b"], ["c"], ["d"], ["e"], []]
    assert [verdict.duplicates for verdict in verdicts] == [[], [0], [], [], []]
    full = "the queue is full: tasks_max is 6"
    assert [verdict.refused for verdict in verdicts] == [[], [], [], [Refusal(1, full)], [Refusal(0, full)]]
    assert [_ids(verdict.accepted) for verdict in admission.decide(writes[:1] + writes[2:3])] == [["a", "b"], ["d"]]
    assert [verdict.duplicates for verdict in admission.decide([[given("a")], [given("a")]])] == [[], [0]]


def test_an_id_is_forgotten_only_as_the_task_that_left(admission: Admission) -> None:
    """A message about an earlier task of the same id changes nothing; nor does one about a task beyond what was folded."""
    for number, through in ((3, 10), (4, 3)):
        admission.forget({"old": number}, through=through)
        assert admission.decide([[given("old")]])[0].duplicates == [0]
    admission.forget({"old": 4, "stranger": 1}, through=4)
    assert admission.decide([[given("old")]])[0].duplicates == []


@pytest.mark.parametrize("task_id", ["", ".hidden", "../up", "a/b", "a b", "a\nb", "a\n", "x" * 129, "ü", "a\x00"])
def test_an_id_is_never_a_path_nor_a_riddle(admission: Admission, task_id: str) -> None:
    verdict = admission.decide([[given("fine"), given(task_id)]])[0]
    assert _ids(verdict.accepted) == ["fine"]
    assert "an id is 1 to 128" in verdict.refused[0].reason


@pytest.mark.parametrize("task_id", ["a", "A.b_c-d:e@f", "9", "x" * 128])
def test_readable_ids_are_welcome(admission: Admission, task_id: str) -> None:
    assert _ids(admission.decide([[given(task_id)]])[0].accepted) == [task_id]


def test_limits_at_their_edge(admission: Admission) -> None:
    """n is taken, n + 1 is not; the others of the batch are not affected."""
    fits, over = Raw(b'"' + b"x" * 998 + b'"'), Raw(b'"' + b"x" * 999 + b'"')
    deep, deeper = Raw(b"[" * 8 + b"]" * 8), Raw(b"[" * 9 + b"]" * 9)
    tasks = [TaskIn(id=name, data=raw) for name, raw in {"a": fits, "b": over, "c": deep, "d": deeper}.items()]
    verdict = admission.decide([tasks])[0]
    assert _ids(verdict.accepted) == ["a", "c"]
    assert [refusal.index for refusal in verdict.refused] == [1, 3]
    assert "1,001 bytes" in verdict.refused[0].reason
    assert "more than 8 deep" in verdict.refused[1].reason


def test_what_no_frame_would_hold_for_all_that_it_waits_for_is_refused(admission: Admission) -> None:
    """A publisher that appends by itself sends no frame, and so meets no limit of one; to a consumer it has to go in one."""
    most = 4 * 2**20 // len('"old",')
    verdict = admission.decide([[given("a", after=("old",) * (most + 1)), given("b", after=("old",) * most)]])[0]
    assert [task.id for task in verdict.accepted] == ["b"]
    assert verdict.refused == [Refusal(0, "the ids of what it would wait for come to 4,194,306 bytes, and 4,194,304 are the most")]


def test_a_full_queue_refuses(admission: Admission) -> None:
    verdict = admission.decide([[given(f"t{n}") for n in range(7)]])[0]
    assert len(verdict.accepted) == 5
    assert verdict.refused[0] == Refusal(5, "the queue is full: tasks_max is 6")


def test_a_disk_without_room_refuses_what_is_new_and_knows_what_is_old(admission: Admission) -> None:
    verdict = admission.decide([[given("old"), given("new")]], room=False)[0]
    assert verdict.duplicates == [0]
    assert "the disk is nearly full" in verdict.refused[0].reason


def test_a_task_waits_only_for_what_is_there(admission: Admission) -> None:
    """Known already, or before it in the same batch."""
    verdict = admission.decide([[given("a", after=("old",)), given("b", after=("a",)), given("c", after=("nope",))]])[0]
    assert _ids(verdict.accepted) == ["a", "b"]
    assert verdict.refused == [Refusal(2, "it would wait for 'nope', which is not in the queue")]


@pytest.mark.parametrize("size", [2, 200])
def test_a_payload_is_utf8(admission: Admission, size: int) -> None:
    raw = Raw(b'"' + b"\xff" * size + b'"')
    assert admission.decide([[TaskIn(id="a", data=raw)]])[0].refused[0].reason.startswith("its payload is not valid UTF-8")


@pytest.mark.parametrize("number", [b"1e309", b"-1E+999", b"1e0309", b"9" * 310 + b".5", b"9" * 250 + b"e99", b"9" * 5000, b"9" * 21])
def test_a_number_that_no_consumer_could_read_is_refused(number: bytes) -> None:
    """Grammatical JSON, but whoever decodes it fails, with all that is in the same frame. Its neighbours are taken."""
    admission = Admission(TakenIds(), last_task=0, config=Config())
    tasks = [TaskIn(id="a", data=Raw(b"1")), TaskIn(id="b", data=Raw(b'{"n":[' + number + b"]}"))]
    verdict = admission.decide([tasks])[0]
    assert _ids(verdict.accepted) == ["a"]
    assert [refusal.index for refusal in verdict.refused] == [1]
    assert verdict.refused[0].reason.startswith("its payload holds a number that is out of range")


@pytest.mark.parametrize(
    "text", [b"1e308", b"1e-999", b'"1e999"', b'["e123","' + b"9" * 400 + b'"]', b"18446744073709551615", b"-0", b"1.50"]
)
def test_a_large_number_or_what_only_looks_like_one_is_taken(text: bytes) -> None:
    admission = Admission(TakenIds(), last_task=0, config=Config())
    tasks = [TaskIn(id="a", data=Raw(text)), TaskIn(id="b", data=Raw(text))]
    assert _ids(admission.decide([tasks])[0].accepted) == ["a", "b"]
    assert _ids(admission.decide([[tasks[0], tasks[0]]])[0].accepted) == ["a"]


def test_brackets_in_strings_do_not_nest() -> None:
    text = rb'{"a[[[":["\"[", "]{", [1]]}'
    assert nests_deeper(text, 2)
    assert not nests_deeper(text, 3)
    assert not nests_deeper(b"1", 0)


@pytest.mark.parametrize("limit", range(1, 30))
def test_the_shortest_text_beyond_a_limit_is_beyond_it(limit: int) -> None:
    """What is too short to hold so many brackets or keys is not searched for them; the shortest that can hold them is."""
    config = Config(depth_max=limit, keys_max=limit)
    keys = ",".join(f'"{key}":0' for key in ["", *"abcdefghijklmnopqrstuvwxyz012345"[:limit]])
    for text, fault in ((f"{'[' * (limit + 1)}{']' * (limit + 1)}", "nested more than"), (f"{{{keys}}}", "keys in its objects")):
        alone, among = (
            Admission(TakenIds(), last_task=0, config=config).decide([[TaskIn(id=f"a{n}", data=Raw(text.encode())) for n in range(count)]])[
                0
            ]
            for count in (1, 2)
        )
        assert [fault in refusal.reason for refusal in alone.refused + among.refused] == [True] * 3
