"""verify and repair: every damage is mended without loss, or named; and given up only when told to."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import msgspec
import pytest
from msgspec import Raw

from jsonqueue.config import CONFIG_FILE
from jsonqueue.core.records import Cancelled, Completed, Died, Due, Failed, Progress, Replayed, Retired, Unleased, encode_records
from jsonqueue.errors import CorruptQueue, DiskFull, LockLost, ManagerRunning, StorageError, UnreadableFile
from jsonqueue.storage import repair as repair_module
from jsonqueue.storage.archive import Archived, archive_files, archived_since
from jsonqueue.storage.checkpoint import final_checkpoint
from jsonqueue.storage.files import Files
from jsonqueue.storage.folder import open_folder
from jsonqueue.storage.locks import hold
from jsonqueue.storage.log import LogKind, LogWriter
from jsonqueue.storage.memory import MemoryFiles, PowerCut
from jsonqueue.storage.queue_file import PREVIOUS, QUEUE, ArchiveMark, read_header
from jsonqueue.storage.recovery import load_state
from jsonqueue.storage.repair import Report, examine, mend, repair, verify
from jsonqueue.task import Outcome, TaskStatus
from storage.history import AT_MS, CONFIG, Queue, archived, contents, tasks_in


def lived(*, closed: bool = False) -> tuple[MemoryFiles, dict[str, bytes]]:
    """The files of a queue with two generations and a log, and what it holds."""
    files = MemoryFiles()
    queue = Queue(files)
    queue.publish("a", "b", "c")
    queue.lease("a", "b")
    queue.checkpoint()
    queue.complete("a")
    queue.publish("d")
    queue.checkpoint()
    queue.publish("e")
    queue.lease("c")
    queue.publish("f")
    queue.complete("b")
    queue.publish("g")
    queue.close()
    if closed:
        final_checkpoint(files, config=CONFIG, at_ms=AT_MS)
    return files, contents(load_state(files))


def published(ids: str) -> MemoryFiles:
    """A queue with these tasks, each in a batch of its own, and nothing else."""
    files = MemoryFiles()
    queue = Queue(files)
    for task_id in ids:
        queue.publish(task_id)
    queue.close()
    return files


def mended(files: MemoryFiles, **accept: bool) -> Report:
    return mend(files, **{"accept_loss": False, "accept_edit": False, **accept}, at_ms=AT_MS)


def segment_of(files: MemoryFiles, kind: str, place: int = -1) -> str:
    return [name for name in files.list() if name.startswith(f"{kind}-")][place]


def flip(files: MemoryFiles, name: str, bit: int) -> None:
    data = bytearray(files.get(name))
    data[bit // 8] ^= 1 << bit % 8
    files.put(name, bytes(data))


@pytest.mark.parametrize("closed", [False, True])
def test_a_sound_queue_has_no_findings(closed: bool) -> None:
    """And repair leaves it as it is."""
    files, expected = lived(closed=closed)
    before = {name: files.get(name) for name in files.list()}
    assert examine(files) == mended(files) == ([], [], [], len(expected))
    assert {name: files.get(name) for name in files.list()} == before


def test_every_flipped_bit_of_a_log_is_mended_or_named() -> None:
    """In the fixed part of a line it is mended; in a payload it is named, and nothing is changed."""
    files, expected = lived()
    mendable = 0
    for kind in ("published", "progress"):
        name = segment_of(files, kind)
        data = files.get(name)
        for at in range(0, len(data), 5):
            files.put(name, data)
            flip(files, name, 8 * at + at % 8)
            assert not examine(files).ok
            report = mended(files)
            if report.ok:
                mendable += 1
                assert contents(load_state(files)) == expected
                assert report.done
                assert any(files.get(f"damaged-1/{aside}") != data for aside in files.list("damaged-1"))
            else:
                assert report.findings[0].file == name
                assert not report.done
            for aside in files.list("damaged-1"):
                files.unlink(f"damaged-1/{aside}")
        files.put(name, data)
    assert mendable > 80


@pytest.mark.parametrize("closed", [False, True])
def test_every_flipped_bit_of_queue_json_is_mended(closed: bool) -> None:
    """It is folded anew from the generation before it: damage to any one queue.json costs nothing."""
    files, expected = lived(closed=closed)
    for bit in range(0, 8 * len(files.get(QUEUE)), 37):
        damaged = files.copy()
        flip(damaged, QUEUE, bit)
        report = mended(damaged)
        if any(finding.kind == "newer" for finding in report.findings):
            continue  # the version itself was hit: that is refused, not guessed at
        assert report.ok, bit
        assert contents(load_state(damaged)) == expected
        assert damaged.list("damaged-1") == [QUEUE]


@pytest.mark.parametrize("closed", [False, True])
def test_a_queue_json_that_is_gone_is_made_anew(closed: bool) -> None:
    """Deleted by accident, say."""
    files, expected = lived(closed=closed)
    files.unlink(QUEUE)
    assert not examine(files).ok
    report = mended(files)
    assert report.ok
    assert report.done == [f"{QUEUE} was made anew from the generation before it and the logs, since there was none"]
    assert not files.list("damaged-1"), "there was nothing to put there"
    assert contents(load_state(files)) == expected
    files.put(QUEUE, b"")  # and the generation it was made from is kept
    report = mended(files)
    assert report.ok
    assert report.done[0].endswith("; the one before is in damaged-1/")
    assert contents(load_state(files)) == expected


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("later", [False, True])
def test_the_very_first_queue_json_is_made_anew_too(clean: bool, later: bool) -> None:
    """There was none before it; the logs that led to it, from their first batch on, are all it was made from."""
    files = MemoryFiles()
    queue = Queue(files)
    queue.publish("a", "b")
    queue.lease("a")
    queue.complete("a")
    if clean:
        queue.close()
        final_checkpoint(files, config=CONFIG, at_ms=AT_MS)
        queue.open()
    else:
        queue.checkpoint()
    if later:
        queue.publish("c")
        queue.lease("b")
    expected = contents(queue.load())
    queue.close()
    files.unlink(QUEUE)
    without = files.copy()
    assert [finding.file for finding in examine(files).findings] == [QUEUE]
    report = mended(files)
    assert (report.ok, report.tasks, len(report.done)) == (True, len(expected), 1)
    assert contents(load_state(files)) == expected
    without.unlink(f"{PREVIOUS}/{next(name for name in without.list(PREVIOUS) if name.startswith('published'))}")
    assert not mended(without).ok  # of what is not all there nothing is made up


def test_a_first_checkpoint_that_was_cut_short_takes_nothing_away() -> None:
    """Its segments are in previous/ already, and no queue.json is there: the logs alone are the queue, also under their next epochs."""
    files = MemoryFiles()
    queue = Queue(files)
    queue.publish("a")
    queue.lease("a")
    queue.close()

    def cut(number: int, operation: str) -> None:
        if operation.startswith("rename"):
            raise PowerCut

    files.fail = cut
    with pytest.raises(PowerCut):
        final_checkpoint(files, config=CONFIG, at_ms=AT_MS)
    files.fail = lambda number, operation: None
    assert len(files.list(PREVIOUS)) == 2
    assert examine(files).ok
    queue.open()
    queue.publish("b")
    assert not {*files.list()} & {*files.list(PREVIOUS)}
    assert examine(files).ok
    assert sorted(queue.check().state.tasks) == ["a", "b"]


@pytest.mark.parametrize("closed", [False, True])
def test_without_the_previous_generation_nothing_is_made_up(closed: bool) -> None:
    """An empty queue would be the worst of all repairs."""
    files, _ = lived(closed=closed)
    for name in files.list(PREVIOUS):
        files.unlink(f"{PREVIOUS}/{name}")
    data = files.get(QUEUE)
    for damage in (data[:-3], data.replace(b'"pending"', b'"pendinG"', 1), b""):
        files.put(QUEUE, damage)
        report = mended(files)
        assert not report.ok
        assert not report.done
        assert files.get(QUEUE) == damage


def test_a_queue_before_its_first_checkpoint_is_folded_from_its_logs() -> None:
    """There is no generation before it, and none is needed."""
    files = MemoryFiles()
    queue = Queue(files)
    queue.publish("a")
    queue.checkpoint()
    expected = contents(queue.load())
    files.put(QUEUE, b"rubbish")
    assert mended(files).ok
    assert contents(load_state(files)) == expected


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_first_queue_json_is_missed_whichever_segment_a_power_cut_brought_back(place: int) -> None:
    """Unlinking is not synced, and of several names any may be gone: the first one that is there does not say that none is."""
    files = MemoryFiles()
    queue = Queue(files)
    for task_id in ("a", "b", "c"):
        queue.publish(task_id)
        queue.rotate()
    back = segment_of(files, "published", place)
    queue.checkpoint()
    queue.publish("d")
    queue.close()
    expected = contents(load_state(files))
    files.put(back, files.get(f"{PREVIOUS}/{back}"))
    files.unlink(QUEUE)
    with pytest.raises(CorruptQueue, match="missing, though the queue had one"):
        load_state(files)
    assert mended(files).ok
    assert contents(load_state(files)) == expected


def test_a_repair_that_cannot_mend_leaves_no_draft() -> None:
    """Both generations are damaged, in a line that nothing happened to: that shows when all of it was copied."""
    files = MemoryFiles()
    queue = Queue(files)
    for task_id in ("a", "b", "c"):
        queue.publish(task_id)
        queue.checkpoint()
    queue.close()
    for name in (QUEUE, f"{PREVIOUS}/{QUEUE}"):
        files.put(name, files.get(name).replace(b'"data":"a"', b'"data":"A"'))
    names = files.list()
    assert not mended(files).ok
    assert files.list() == names


@pytest.mark.parametrize("power_cut", range(8))
def test_a_power_cut_does_not_bring_back_what_was_given_up(power_cut: int) -> None:
    """Who was told that the queue is mended can start it; and what he gave up is not there to go on from."""
    files, _ = lived()
    name = segment_of(files, "published")
    files.put(name, files.get(name).replace(b'"e"', b'"E"'))
    assert mended(files, accept_loss=True).ok
    expected = contents(load_state(files))
    files.crash(Random(power_cut))
    assert examine(files).ok
    assert contents(load_state(files)) == expected
    assert not files.list(PREVIOUS)


@pytest.mark.parametrize("power_cut", range(8))
def test_a_power_cut_does_not_bring_back_what_was_before_an_edit(power_cut: int) -> None:
    """It would be the generation before the edit, and lead to what the edit replaced."""
    files, _ = lived(closed=True)
    files.put(QUEUE, files.get(QUEUE).replace(b'"data":"d"', b'"data":"D"'))
    assert mended(files, accept_edit=True).ok
    files.crash(Random(power_cut))
    assert not files.list(PREVIOUS)


def test_an_edit_is_kept_when_told_to() -> None:
    """In any layout; what was there before stays aside, and does not come back."""
    files, _ = lived(closed=True)
    document = json.loads(files.get(QUEUE))
    edited = next(task for task in document["tasks"] if task["id"] == "d")
    edited["data"], edited["priority"] = {"by": "hand"}, 7
    document["tasks"] = [task for task in document["tasks"] if task["id"] != "e"]
    files.put(QUEUE, json.dumps(document, indent=1).encode())
    [finding] = examine(files).findings
    assert (finding.kind, finding.file) == ("edited", QUEUE)
    assert "--accept-edit" in finding.options
    report = mended(files, accept_edit=True)
    assert report.ok
    assert "taken as it was edited (6 tasks)" in report.done[0]
    state = load_state(files).state
    assert "e" not in state.tasks
    assert (state.tasks["d"].priority, msgspec.json.decode(state.tasks["d"].data)) == (7, {"by": "hand"})
    assert not files.list(PREVIOUS)
    assert QUEUE in files.list("damaged-1")
    Queue(files).publish("h")


def test_an_edit_in_another_layout_and_order_is_laid_out_again() -> None:
    """One task a line, by their numbers, however the editor sorted and broke them: payloads and results too."""
    files, _ = lived(closed=True)
    document = json.loads(files.get(QUEUE))
    document["tasks"].reverse()
    for task in document["tasks"]:
        task.update({name: {"by": ["hand"]} for name in ("data", "result") if name in task})
    files.put(QUEUE, json.dumps(document, indent=1).encode())
    assert mended(files, accept_edit=True).ok
    lines = [line for line in files.get(QUEUE).split(b"\n") if line.startswith(b'{"id"')]
    assert [json.loads(line.rstrip(b","))["id"] for line in lines] == list("abcdefg")
    assert sum(line.count(b'{"by":["hand"]}') for line in lines) == 7 + len([line for line in lines if b'"completed"' in line])
    assert examine(files).ok
    assert [task.number for task in load_state(files).state.tasks.values()] == list(range(1, 8))


def test_an_edit_of_a_queue_in_which_nothing_has_run_is_taken() -> None:
    """Its progress log has come to batch 0 of epoch 0."""
    files = MemoryFiles()
    queue = Queue(files)
    queue.publish("a")
    queue.close()
    final_checkpoint(files, config=CONFIG, at_ms=AT_MS)
    files.put(QUEUE, files.get(QUEUE).replace(b'"data":"a"', b'"run_at_ms":9999999999999,"data":"A"'))
    assert mended(files, accept_edit=True).ok
    assert load_state(files).state.tasks["a"].run_at_ms == 9_999_999_999_999


@pytest.mark.parametrize("change", [lambda data: b"\xef\xbb\xbf" + data, lambda data: data.replace(b"\n", b"\r\n"), bytes.rstrip])
def test_what_an_editor_adds_or_leaves_out_is_an_edit(change: Callable[[bytes], bytes]) -> None:
    """A mark before the text, other ends of its lines, or none at the end of the last one. With the mark it was called damaged, and
    `repair --accept-edit` undid what it was told to keep."""
    files, expected = lived()
    files.put(QUEUE, change(files.get(QUEUE).replace(b'"data":"d"', b'"data":"D"')))
    [finding] = examine(files).findings
    assert (finding.kind, finding.file) == ("edited", QUEUE)
    assert mended(files, accept_edit=True).ok
    assert contents(load_state(files)) == {**expected, "d": expected["d"].replace(b'"data":"d"', b'"data":"D"')}


def test_no_way_back_is_promised_where_there_is_none() -> None:
    """An edit was accepted, and the next one comes before a checkpoint made another generation. `repair`, which the hint named, failed."""
    files, _ = lived(closed=True)
    files.put(QUEUE, files.get(QUEUE).replace(b'"worker@1"', b'"nobody@1"'))
    (finding,) = examine(files).findings
    assert "`jsonqueue repair`, which rebuilds" in finding.options
    assert mended(files, accept_edit=True).ok
    files.put(QUEUE, files.get(QUEUE).replace(b'"nobody@1"', b'"another@1"'))
    (finding,) = examine(files).findings
    assert (finding.kind, "undo it by hand" in finding.options, "which rebuilds" in finding.options) == ("edited", True, False)
    assert not mended(files).ok
    files.put(QUEUE, files.get(QUEUE).replace(b'"another@1"', b'"nobody@1"'))
    assert examine(files).ok
    files.put(QUEUE, files.get(QUEUE).replace(b'"nobody@1"', b'"another@1"'))
    assert mended(files, accept_edit=True).ok


def test_an_edit_is_undone_when_not_told_otherwise() -> None:
    """Plain repair goes back to what jsonqueue wrote."""
    files, expected = lived()
    files.put(QUEUE, files.get(QUEUE).replace(b'"worker@1"', b'"nobody@1"'))
    assert mended(files).ok
    assert contents(load_state(files)) == expected


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('"number":2,', '"number":1,', "two tasks of number 1"),
        ('"id":"b"', '"id":"a"', "two tasks of this id"),
        ('"id":"b"', '"id":"the \\"b\\""', "that is no id"),
        ('"number":2,', '"number":99,', "not between 1 and last_task"),
        ('"status":"in_progress"', '"status":"asleep"', "asleep"),
        ('"status":"in_progress"', '"status":"dead"', "does not fit"),
        ('"status":"in_progress"', '"status":"in_progress","run_at_ms":1763000000000000', "a time of it is none"),
        ('"number":1,', '"number":0,', "not between 1 and last_task"),
        ('"status":"in_progress"', '"status":"in_progress","run_at_ms":10000000000000', "a time of it is none"),
        ('"epochs":[1', '"epochs":[2147483648', "<= 2147483647"),
        ('"last_task":4', '"last_task":281474976710656', "<= 281474976710655"),
        ('"archive":{"file":"', '"archive":{"fold":1,"file":"', "unknown field `fold`"),
        ('"started_ms":1', '"started_ms":-1', "a time of it is none"),
        ('"last_task":', '"the_last_task":', "unknown field `the_last_task`"),
        ('"version":1,', "", "required field `version`"),
        ('"version":1', '"version":2', "2"),
        ('"status":"in_progress"', '"status":"in_progress","prority":9', "unknown field `prority`"),
        ('"outcome":"completed"', '"outcome":"completed","eror":"none"', "unknown field `eror`"),
        ('"last_task":', '"note":"mine","last_task":', "unknown field `note`"),
        ('"epochs":[1', '"epochs":[4294967296', "<= 2147483647"),
        ('"progress_through":[', '"progress_through":[-', ">= 0"),
        ('"chains":["', '"chains":["zz', "matching regex"),
        ('"archive":{"file":"', '"archive":{"file":"../', "matching regex"),
        ('"tasks":', '"tasks":,', "JSON is malformed"),
    ],
)
def test_an_edit_that_makes_no_sense_is_not_taken(old: str, new: str, why: str) -> None:
    """It says what is wrong with it, and changes nothing."""
    files, _ = lived()
    edited = files.get(QUEUE).replace(old.encode(), new.encode(), 1)
    files.put(QUEUE, edited)
    report = mended(files, accept_edit=True)
    assert not report.ok
    assert not report.done
    assert why in " ".join(finding.what for finding in report.findings)
    assert files.get(QUEUE) == edited


def test_a_lost_batch_is_given_up_only_when_told_to_and_is_listed() -> None:
    """The tasks of the damaged batch are lost; all others, before and behind it, are kept with what became of them."""
    files, expected = lived()
    name = segment_of(files, "published")
    files.put(name, files.get(name).replace(b'"e"', b"'e'"))
    [finding] = examine(files).findings
    assert (finding.kind, finding.batch, finding.file) == ("damaged", 3, name)
    assert not mended(files).ok
    report = mended(files, accept_loss=True)
    assert report.ok
    assert report.lost == ["published batch 3"]
    after = contents(load_state(files))
    assert after == {task_id: task for task_id, task in expected.items() if task_id != "e"}
    assert name in files.list("damaged-1")
    queue = Queue(files)
    queue.publish("e")
    assert load_state(files).state.tasks["e"].number == len(expected) + 1


@pytest.mark.parametrize(("left", "lost"), [(0, "published batches 3 to 5"), (1, "published batches 3 to 5"), (3, "published batch 5")])
def test_an_end_of_the_published_log_on_which_progress_rests_is_listed(left: int, lost: str) -> None:
    """With so many lines of it left. No batch behind tells of those that are gone, and no record speaks of their tasks: of tasks that were
    acknowledged, and waited, it said "0 things lost"."""
    files = MemoryFiles()
    queue = Queue(files)
    queue.publish("a")
    queue.publish("b")
    queue.rotate()
    for task_id in "cde":
        queue.publish(task_id)
    queue.lease("a")
    queue.close()
    name = segment_of(files, "published")
    files.put(name, b"".join(files.get(name).splitlines(keepends=True)[:left]))
    assert not mended(files).ok
    report = mended(files, accept_loss=True)
    assert (report.ok, report.lost) == (True, [lost])
    assert {*load_state(files).state.tasks} == {*"abcde"[: max(2, left + 1)]}


def test_what_was_published_in_the_place_of_a_lost_end_does_not_hide_the_loss() -> None:
    """A publisher that appends by itself, or a broker before its sibling has read the queue, knows nothing of what progress rests on."""
    files = MemoryFiles()
    queue = Queue(files)
    for task_id in "abc":
        queue.publish(task_id)
    queue.lease("a")
    queue.close()
    name = segment_of(files, "published")
    files.put(name, b"".join(files.get(name).splitlines(keepends=True)[:2]))
    log = LogWriter.open(files, LogKind.PUBLISHED)
    log.append(encode_records(tasks_in("x")), at_ms=AT_MS, first_task=2)
    log.append(encode_records(tasks_in("y")), at_ms=AT_MS, first_task=3)
    log.append(encode_records(tasks_in("z")), at_ms=AT_MS, first_task=4)
    log.sync()
    log.close()
    assert not mended(files).ok
    report = mended(files, accept_loss=True)
    assert (report.ok, report.lost) == (True, ["published batches 2 to 3"])
    assert {*load_state(files).state.tasks} == {*"axyz"}


def test_lost_progress_is_made_up_for_by_what_came_after_it() -> None:
    """A task whose lease record is lost and which was completed later is complete."""
    files, _ = lived()
    queue = Queue(files)
    queue.lease("d", "e")
    queue.complete("d", "e")
    queue.close()
    name = segment_of(files, "progress")
    data = files.get(name)
    files.put(name, data.replace(b'"first":', b'"fIrst":', 2).replace(b'"fIrst":', b'"first":', 1))
    report = mended(files, accept_loss=True)
    assert report.ok
    assert report.lost == ["progress batch 5"]
    tasks = load_state(files).state.tasks
    assert {tasks[task_id].status for task_id in "abde"} == {TaskStatus.COMPLETED}


def test_a_task_that_came_back_has_no_attempt_less_where_its_lease_is_lost() -> None:
    """What was never counted, as far as the files tell, is not taken back."""
    files = MemoryFiles()
    queue = Queue(files)
    queue.publish("a")
    queue.lease("a")
    queue.record(Unleased(["a"], Outcome.RETURNED, counted=False))
    queue.close()
    name = segment_of(files, "progress")
    files.put(name, files.get(name).replace(b'"first":', b'"fIrst":'))
    assert mended(files, accept_loss=True).lost == ["progress batch 1"]
    task = load_state(files).state.tasks["a"]
    assert (task.status, task.attempt) == (TaskStatus.PENDING, 0)


def sealed(*, checkpoints: int = 0) -> tuple[MemoryFiles, bytes]:
    """A queue whose logs were sealed behind their last batch, so that the newest files hold none; and its first queue.json."""
    files = MemoryFiles()
    queue = Queue(files)
    queue.publish("a")
    queue.checkpoint()
    first = files.get(QUEUE)
    for number in range(checkpoints):
        queue.publish(f"b{number}")
        queue.lease(f"b{number}")
        queue.complete(f"b{number}")
        queue.checkpoint()
    queue.publish("c")
    queue.publish("d")
    queue.lease("c", "d")
    queue.rotate()
    queue.close()
    return files, first


@pytest.mark.parametrize(("kind", "lost"), [("published", "published batches 2 to 3"), ("progress", "progress batch 1")])
def test_a_sealed_segment_that_is_gone_is_missed_though_nothing_was_written_since(kind: str, lost: str) -> None:
    """It says so, and what to do; `repair` changes nothing, and what is given up is listed. It said "0 things lost"."""
    files, _ = sealed()
    name = segment_of(files, kind, 0)
    kept = files.get(name)
    files.unlink(name)
    [finding] = examine(files).findings
    assert (finding.kind, finding.file) == ("missing", segment_of(files, kind))
    assert f"lacks {lost.partition(' ')[2]}: the file that held that was removed or moved" in finding.what
    assert "put back what was moved" in finding.options
    assert not mended(files).ok
    assert not files.list("damaged-1")
    back = files.copy()
    report = mended(files, accept_loss=True)
    assert (report.ok, report.lost[0]) == (True, lost)
    back.put(name, kept)
    assert examine(back).ok


@pytest.mark.parametrize(("kind", "lost"), [("published", "published batches 4 to 5"), ("progress", "progress batch 2")])
def test_a_segment_that_is_gone_between_two_others_is_missed(kind: str, lost: str) -> None:
    """It is not its neighbour that is damaged, and no older queue.json can be why; where the neighbour *is* damaged, it is said of that."""
    files, _ = sealed()
    queue = Queue(files)
    queue.publish("e", "f")
    queue.publish("g")
    queue.lease("e")
    queue.rotate()
    queue.publish("h")
    queue.lease("h")
    queue.close()
    gone, damaged = files.copy(), files.copy()
    name = segment_of(files, kind, -2)
    gone.unlink(name)
    [finding] = examine(gone).findings
    assert (finding.kind, finding.file) == ("missing", segment_of(files, kind))
    assert finding.what.endswith(f"lacks {lost.partition(' ')[2]}: the file that held that was removed or moved")
    assert "queue.json anew" not in finding.options
    assert not mended(gone).ok
    report = mended(gone, accept_loss=True)
    assert (report.ok, report.lost[0]) == (True, lost)
    damaged.unlink(name)
    before = segment_of(damaged, kind, -2)
    damaged.put(before, damaged.get(before).rstrip(b"\n")[:-9] + b"x" * 9 + b"\n")
    assert {found.file for found in examine(damaged).findings if not found.harmless} == {before}


@pytest.mark.parametrize("checkpoints", [1, 2, 3])
def test_an_older_queue_json_is_made_anew_without_loss(checkpoints: int) -> None:
    """Somebody put back an older one, whole as it is: `repair` could not mend that, and to give up meant to lose what previous/ held."""
    files, older = sealed(checkpoints=checkpoints)
    expected = contents(load_state(files))
    files.put(QUEUE, older)
    [finding] = examine(files).findings
    assert (finding.kind, "an older queue.json was put in place" in finding.what) == ("missing", True)
    report = mended(files)
    assert (report.ok, report.lost, contents(load_state(files))) == (True, [], expected)
    assert "the older one is in damaged-1/" in report.done[0]
    assert files.get(f"damaged-1/{QUEUE}") == older


def test_of_an_older_queue_json_and_the_generation_before_the_newer_one_counts() -> None:
    """Where a file of a log is gone too, no more is given up than what was in that one."""
    files, older = sealed(checkpoints=3)
    expected = contents(load_state(files))
    files.put(QUEUE, older)
    files.unlink(segment_of(files, "published", 0))
    assert not mended(files).ok
    report = mended(files, accept_loss=True)
    assert report.ok
    assert report.lost[0] == "published batches 5 to 6"
    assert contents(load_state(files)) == {task_id: task for task_id, task in expected.items() if task_id not in ("c", "d")}


def test_progress_of_lost_tasks_is_listed() -> None:
    """What became of a task that is not there cannot be kept."""
    files, _ = lived()
    queue = Queue(files)
    queue.lease("e", "f")
    queue.close()
    name = segment_of(files, "published")
    files.put(name, files.get(name).replace(b'"e"', b"'e'"))
    report = mended(files, accept_loss=True)
    assert report.lost == ["published batch 3", "task e: it was leased (progress batch 5), but what was published is not there"]
    assert load_state(files).state.tasks["f"].status is TaskStatus.IN_PROGRESS


def test_the_lines_of_a_queue_json_that_can_be_read_are_kept() -> None:
    """Damaged, with no generation before it: one task is lost, and the logs still count."""
    files, expected = lived()
    for name in files.list(PREVIOUS):
        files.unlink(f"{PREVIOUS}/{name}")
    data = files.get(QUEUE)
    files.put(QUEUE, data.replace(b'"id":"c"', b'"id":!c"', 1))
    report = mended(files, accept_loss=True)
    assert report.ok
    assert [sentence[:18] for sentence in report.lost] == ["queue.json, line 4", "task c: it was lea"]
    assert contents(load_state(files)) == {task_id: task for task_id, task in expected.items() if task_id != "c"}


@pytest.mark.parametrize("tail", [b"", b"\0" * 600, b'{"id":"', b"\0" * 20 + b'"}\n'])
def test_a_queue_json_without_a_readable_first_line_is_kept_too(tail: bytes) -> None:
    """Then all of the logs counts, and the archive as it is, but for what a power cut left of a line."""
    files, expected = lived()
    for name in files.list(PREVIOUS):
        files.unlink(f"{PREVIOUS}/{name}")
    files.put("archive/2025-11.jsonl", b'{"id":"z"}\n' + tail)
    files.put(QUEUE, b"\xff" * 40 + files.get(QUEUE)[40:])
    report = mended(files, accept_loss=True)
    assert report.ok
    assert "queue.json, line 1" in report.lost[0]
    loaded = load_state(files)
    assert set(contents(loaded)) == set(expected)
    assert loaded.header.archive == ArchiveMark("archive/2025-11.jsonl", 11)


def test_logs_without_a_queue_json_are_kept() -> None:
    """A batch in the middle is damaged before the first checkpoint ever."""
    files = MemoryFiles()
    queue = Queue(files)
    for task_id in "abc":
        queue.publish(task_id)
    queue.lease("a", "c")
    queue.close()
    name = segment_of(files, "published")
    files.put(name, files.get(name).replace(b'"id":"b"', b'"id":"\xffb"'))
    assert not mended(files).ok
    report = mended(files, accept_loss=True)
    assert report.ok
    assert report.lost == ["published batch 2"]
    assert list(load_state(files).state.tasks) == ["a", "c"]


def test_of_a_batch_that_is_kept_each_task_has_its_own_result() -> None:
    """Also behind one that is not there any more; and where all of them came to nothing."""
    files = MemoryFiles()
    queue = Queue(files)
    for task_id in "abcde":
        queue.publish(task_id)
    queue.lease("b", "a", "c", "d", "e")
    queue.record(Completed(["b", "a", "c"], [Raw(b"1"), Raw(b"2"), Raw(b"3")]), Completed(["d", "e"], []))
    queue.close()
    expected = contents(load_state(files))
    name = segment_of(files, "published")
    files.put(name, files.get(name).replace(b'"id":"b"', b'"id":"\xffb"'))
    report = mended(files, accept_loss=True)
    assert report.ok
    assert report.lost == [
        "published batch 2",
        "task b: it was leased (progress batch 1), but what was published is not there",
        "task b: it was completed (progress batch 2), but what was published is not there",
    ]
    assert contents(load_state(files)) == {task_id: task for task_id, task in expected.items() if task_id != "b"}


def test_what_is_behind_a_batch_that_was_blanked_is_kept() -> None:
    """Newlines are padding only where nothing comes after them."""
    files = published("abc")
    name = segment_of(files, "published")
    lines = files.get(name).split(b"\n")
    assert b'"id":"b"' in lines[2]
    files.put(name, b"\n".join([*lines[:2], b"\n" * (len(lines[2]) - 1), *lines[3:]]))
    report = mended(files, accept_loss=True)
    assert report.ok
    assert [lost for lost in report.lost if "kept" not in lost] == ["published batch 2"]
    assert list(load_state(files).state.tasks) == ["a", "c"]


def test_what_is_lost_behind_the_last_batch_that_is_whole_is_listed() -> None:
    """No batch comes after it that would miss it by its number."""
    files = published("abc")
    name = segment_of(files, "published")
    data = files.get(name).replace(b'"id":"b"', b'"id":"\xffb"').replace(b'"id":"c"', b'"id":"\xffc"')
    files.put(name, data)
    report = mended(files, accept_loss=True)
    assert report.ok
    lines = data.split(b"\n")
    at = len(lines[0]) + len(lines[1]) + 2
    assert report.lost == [
        f"{name}, byte {at}: {len(lines[2]) + 1} bytes that are no batch (any more)",
        f"{name}, byte {at + len(lines[2]) + 1}: {len(lines[3]) + 1} bytes that are no batch (any more)",
    ]
    assert list(load_state(files).state.tasks) == ["a"]


def test_a_batch_that_still_makes_sense_but_was_changed_is_given_up_too() -> None:
    """Its checksum does not fit, whatever it says now."""
    files, expected = lived()
    name = segment_of(files, "published")
    files.put(name, files.get(name).replace(b'"data":"e"', b'"data":"E"'))
    report = mended(files, accept_loss=True)
    assert report.ok
    assert "batch 3, of which something was changed" in report.lost[0]
    assert set(contents(load_state(files))) == set(expected) - {"e"}


def test_a_segment_without_a_readable_first_line_still_counts() -> None:
    """Its batches are whole by themselves; so are records of a single task, and tasks that queue.json has already."""
    files, _ = lived()
    queue = Queue(files)
    queue.lease("d", "e")
    queue.record(Failed("d", "oh no", 0))
    queue.close()
    expected = contents(load_state(files))
    for kind in ("published", "progress"):
        name = segment_of(files, kind)
        files.put(name, b"{}" + files.get(name)[2:].replace(b'"chain"', b'"Chain"', 1))
    assert not mended(files).ok
    report = mended(files, accept_loss=True)
    assert (report.ok, report.lost) == (True, [])
    assert contents(load_state(files)) == expected


@pytest.mark.parametrize("kind", ["published", "progress"])
def test_a_log_that_is_gone_after_a_clean_stop_is_damage_once_it_was_begun(kind: str) -> None:
    """A queue.json that a clean stop wrote has no logs beside it, until somebody publishes again: then one is missed."""
    files, expected = lived(closed=True)
    assert examine(files).ok
    queue = Queue(files)
    queue.publish("later")
    queue.lease("later")
    queue.close()
    before = files.copy()
    files.unlink(segment_of(files, kind))
    for _ in range(2):  # a plain repair loses nothing, and so changes nothing
        found = next(finding for finding in examine(files).findings if not finding.harmless)
        assert found.file == f"{kind}-*.jsonl"
        assert not mended(files).ok
    with pytest.raises(CorruptQueue, match=kind):
        LogWriter.open(files, LogKind(kind))
    report = mended(files, accept_loss=True)
    assert report.ok
    assert any(line.startswith(f"{kind}-*.jsonl") for line in report.lost)
    assert contents(load_state(files)).keys() >= expected.keys()
    final_checkpoint(before, config=CONFIG, at_ms=AT_MS)
    assert before.list() == [QUEUE]
    assert examine(before).ok


def test_what_a_log_left_when_it_was_begun_is_taken_for_what_it_was() -> None:
    """Where the log went on under higher epochs, or a clean stop was cut short before it was removed, nothing is missing."""
    files, _ = lived(closed=True)
    for task in "xyz":
        queue = Queue(files)
        queue.publish(task)
        queue.close()
        assert examine(files).ok
    begun = {name: files.get(name) for name in files.list() if "begun" in name}
    assert len(begun) == 2
    final_checkpoint(files, config=CONFIG, at_ms=AT_MS)
    for name, data in begun.items():
        files.put(name, data)
    assert examine(files).ok
    queue = Queue(files)
    queue.publish("w")
    queue.checkpoint()
    assert not begun.keys() & {*files.list()}
    assert examine(files).ok
    queue.close()


def test_a_newer_format_is_never_given_up() -> None:
    """It is not damage, whatever was accepted."""
    files, _ = lived()
    files.put(QUEUE, b'{"format":"jsonqueue","version":7}')
    report = mended(files, accept_loss=True, accept_edit=True)
    assert [finding.kind for finding in report.findings] == ["newer"]
    assert not report.done
    assert files.get(QUEUE) == b'{"format":"jsonqueue","version":7}'


def test_what_is_merely_untidy_is_noted_as_harmless() -> None:
    """A torn tail, a draft, damage in what nothing needs any more."""
    files, _ = lived()
    name = segment_of(files, "published")
    files.put(name, files.get(name) + b'{"h":"0')
    files.put("queue.json.draft", b"{")
    files.put(
        "published-000000000001-00000000.jsonl", b"rubbish of old, longer than any header line of a segment could ever be, so it is damage"
    )
    files.put(f"{PREVIOUS}/{QUEUE}", b"{}")
    report = examine(files)
    assert report.ok
    assert sorted(finding.kind for finding in report.findings) == ["leftover", "old-damage", "old-damage", "torn-tail"]
    assert not mended(files).done


def test_damage_that_shows_only_across_files_is_found() -> None:
    """Each segment is sound by itself; the log is not."""
    files, _ = lived()
    files.unlink(segment_of(files, "progress"))
    report = examine(files)
    assert not report.ok
    assert report.tasks is None
    assert mended(files).findings[0].kind == "damaged"


def test_on_a_real_folder(tmp_path: Path) -> None:
    """verify reads only, repair takes the locks, and both see the same."""
    root = tmp_path / "q"
    files = open_folder(root, create=True)
    queue = Queue(files)
    queue.publish("a", "b")
    queue.checkpoint()
    queue.publish("c")
    queue.close()
    assert verify(root).ok
    path = root / QUEUE
    path.write_bytes(path.read_bytes().replace(b'"a"', b'"A"', 1))
    before = {entry: entry.stat().st_mtime_ns for entry in root.rglob("*")}
    assert [finding.kind for finding in verify(root).findings] == ["edited"]
    assert {entry: entry.stat().st_mtime_ns for entry in root.rglob("*")} == before
    with hold(root, "progress"), pytest.raises(ManagerRunning, match=str(os.getpid())):
        repair(root)
    report = repair(root)
    assert report.ok
    assert report.tasks == 3
    assert (root / "damaged-1" / QUEUE).exists()
    files.shut()


@pytest.mark.parametrize("lock", ["queue", "published", "progress"])
def test_a_repair_that_lost_a_lock_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lock: str) -> None:
    """Somebody removed its file, and may serve the queue by now."""
    files = open_folder(tmp_path, create=True)
    queue = Queue(files)
    queue.publish("a")
    queue.checkpoint()
    queue.close()
    files.shut()
    (tmp_path / QUEUE).write_bytes(b"")

    def without_its_lock(files: Files, *, accept_loss: bool, accept_edit: bool, at_ms: int) -> Report:
        (tmp_path / f"{lock}.lock").unlink()
        return mend(files, accept_loss=accept_loss, accept_edit=accept_edit, at_ms=at_ms)

    monkeypatch.setattr(repair_module, "mend", without_its_lock)
    for accept_loss in (False, True):
        with pytest.raises(LockLost):
            repair(tmp_path, accept_loss=accept_loss)
        assert (tmp_path / QUEUE).read_bytes() == b""
        assert not [*tmp_path.glob("*.draft")]


def test_an_archive_that_was_moved_with_a_link_in_its_place_is_no_obstacle(tmp_path: Path) -> None:
    """Its files are the user's to move: what is given up elsewhere does not rest on them."""
    root = tmp_path / "q"
    files = open_folder(root, create=True)
    queue = Queue(files)
    for number in range(3):
        queue.publish(f"t{number}")
        queue.checkpoint()
    queue.close()
    moved = root / "archive" / "2025-01.jsonl"
    moved.symlink_to(tmp_path / "elsewhere.jsonl")
    for name in (QUEUE, f"{PREVIOUS}/{QUEUE}"):
        (root / name).write_bytes(b"\xff" * 40 + (root / name).read_bytes()[40:])
    assert repair(root, accept_loss=True).ok
    queue = Queue(files)
    queue.lease("t0")
    queue.complete("t0")
    queue.retire("t0")
    queue.checkpoint()
    assert (root / load_state(files).header.archive.file).read_bytes().startswith(b'{"id":"t0"')
    assert moved.is_symlink()
    queue.close()
    files.shut()


def test_a_name_that_was_changed_is_named() -> None:
    """It cannot be told which of the two is right."""
    files, _ = lived()
    files.rename(segment_of(files, "published"), "published-000000000003-00000009.jsonl")
    report = mended(files)
    assert [finding.what for finding in report.findings] == ["it was written as batch 3 on, epoch 1: the name was changed"]


def test_a_line_without_an_end_cannot_be_mended() -> None:
    """The damage took its newline as well."""
    files, _ = lived()
    name = segment_of(files, "published")
    data = bytearray(files.get(name))
    start = data.rindex(b'{"h"')
    data[start + 70] ^= 1
    data[-1] ^= 1
    files.put(name, bytes(data))
    report = mended(files)
    assert not report.ok
    assert not report.done


def test_two_wrong_digits_are_not_guessed_at() -> None:
    """Not in a batch, and not in a first line."""
    files, _ = lived()
    name = segment_of(files, "published")
    data = files.get(name)
    for at in (50, data.index(b"\n") + 50):
        damaged = bytearray(data)
        damaged[at] ^= 1
        damaged[at + 2] ^= 1
        files.put(name, bytes(damaged))
        assert not mended(files).ok


def test_a_disk_that_fails_while_mending_is_reported() -> None:
    """The damaged file is still there; another attempt finds what this one found."""
    files, expected = lived()
    files.put(QUEUE, b"rubbish")
    files.room = 20
    report = mended(files)
    assert not report.ok
    assert "while mending queue.json" in report.findings[-1].what
    files.room = 1 << 30
    assert mended(files).ok
    assert contents(load_state(files)) == expected


def test_a_batch_behind_one_that_is_gone_is_kept_and_said_to_be_unconfirmed() -> None:
    """Only the batch before it could tell that it was not changed; its records make sense, so it is taken at its word, openly."""
    files, expected = lived()
    name = segment_of(files, "published")
    data = bytearray(files.get(name))
    start = data.index(b'{"h"', 1)
    data[start + 50] ^= 1
    data[start + 52] ^= 1
    files.put(name, bytes(data))
    report = mended(files, accept_loss=True)
    assert report.ok
    assert report.lost[0].endswith("published batch 4 was kept, though nothing can confirm it")
    assert report.lost[1:] == ["published batch 3"]
    assert contents(load_state(files)) == {task_id: task for task_id, task in expected.items() if task_id != "e"}


def test_without_any_progress_the_tasks_are_kept() -> None:
    """A log that holds nothing has lost nothing."""
    files = published("abc")
    name = segment_of(files, "published")
    files.put(name, files.get(name).replace(b'"id":"b"', b'"id":"\xffb"'))
    report = mended(files, accept_loss=True)
    assert (report.ok, report.lost) == (True, ["published batch 2"])
    assert list(load_state(files).state.tasks) == ["a", "c"]


def test_tasks_that_stand_in_queue_json_and_in_the_logs_are_kept_once() -> None:
    """Neither generation tells how far it goes, so all of the logs counts; what came out of queue.json already is not published again."""
    files, expected = lived()
    for name in (QUEUE, f"{PREVIOUS}/{QUEUE}"):
        files.put(name, b"\xff" * 40 + files.get(name)[40:])
    report = mended(files, accept_loss=True)
    assert report.ok
    loaded = load_state(files)
    assert set(contents(loaded)) == set(expected)
    assert [task.number for task in loaded.state.tasks.values()] == list(range(1, len(expected) + 1))


def told_twice(*, checkpoints_after: tuple[int, int]) -> tuple[MemoryFiles, dict[str, bytes]]:
    """A queue where everything has happened, much of it more than once, and what it holds; with checkpoints after these of its steps."""
    files = MemoryFiles()
    queue = Queue(files)
    at_ms = AT_MS

    def record(*records: Progress) -> None:
        nonlocal at_ms
        at_ms += 1
        queue.prog.append(encode_records(list(records)), at_ms=at_ms, after=queue.pub.position)
        queue.prog.sync()

    queue.record = record  # type: ignore[method-assign] # each batch has a time of its own
    queue.publish("a", "b", "c", "d", "e")
    steps = [
        lambda: queue.lease("a", "b"),
        lambda: record(Failed("a", "no", at_ms), Unleased(["b"], Outcome.RETURNED, counted=False)),
        lambda: queue.lease("b", "a"),
        lambda: record(Unleased(["b"], Outcome.LOST)),
        lambda: record(Cancelled(["d"], "no more")),
        lambda: queue.complete("a"),
        lambda: queue.lease("b", "c"),
        lambda: record(Died(["b"], "no", Outcome.FAILED, "no"), Unleased(["c"], Outcome.EXPIRED, counted=False, suspect=True)),
        lambda: record(Replayed(["b"]), Retired(["d"])),
        lambda: queue.publish("f"),
        lambda: queue.lease("f", "b"),
        lambda: record(Failed("b", "no", at_ms + 1_000)),
        lambda: queue.complete("f"),
        lambda: record(Due(["b"])),
        lambda: queue.lease("c"),
        lambda: record(Unleased(["c"], Outcome.RETURNED, counted=False, suspect=True)),
        lambda: queue.retire("a"),
    ]
    for place, step in enumerate(steps):
        step()
        if place in checkpoints_after:
            queue.checkpoint()
    queue.close()
    return files, contents(load_state(files))


@pytest.mark.parametrize("second", range(17))
def test_what_a_line_of_queue_json_tells_is_not_told_again_by_the_logs(second: int) -> None:
    """Neither generation says how far the logs were folded into it: no attempt counts twice, and none is in a history twice."""
    for first in range(-1, second):
        files, expected = told_twice(checkpoints_after=(first, second))
        for name in (QUEUE, f"{PREVIOUS}/{QUEUE}"):
            if files.identity(name) is not None:
                files.put(name, b"\xff" * 40 + files.get(name)[40:])
        report = mended(files, accept_loss=True)
        assert report.ok
        assert contents(load_state(files)) == expected, (first, second)
        assert sorted(all_archived(files)) == ["a", "d"]


@pytest.mark.parametrize("second", [2, 10])
def test_a_digit_of_a_first_line_that_nothing_vouches_for_passes_no_batch_over(second: int) -> None:
    """Neither generation is whole. What the logs say behind the checkpoint was not kept where the number up to which they were folded in
    had become too high, and nothing was told as lost."""
    files, expected = told_twice(checkpoints_after=(1, second))
    files.put(f"{PREVIOUS}/{QUEUE}", b"")
    data = files.get(QUEUE)
    digits = [at for at in range(data.index(b'"head"')) if data[at : at + 1].isdigit()]
    for at in digits:
        for digit in {*b"09"} - {data[at]}:
            damaged = files.copy()
            damaged.put(QUEUE, data[:at] + bytes((digit,)) + data[at + 1 :])
            report = mended(damaged, accept_loss=True)
            assert contents(load_state(damaged)) == expected, (at, digit)
            assert sorted(all_archived(damaged)) == ["a", "d"]
            assert report.lost[0].startswith(f"{QUEUE}, line 1: how far the logs were folded in")


def test_a_line_that_is_damaged_in_two_places_is_not_mended() -> None:
    """One byte of its beginning, which is known, and one of its payload, which is not."""
    files, _ = lived()
    name = segment_of(files, "published")
    data = bytearray(files.get(name))
    start = data.rindex(b'{"h"')
    data[start] ^= 1
    data[start + 100] ^= 1
    files.put(name, bytes(data))
    report = mended(files)
    assert (report.ok, report.done) == (False, [])
    assert files.get(name) == bytes(data)


def test_a_repair_that_is_cut_short_leaves_nothing_that_it_would_not_know() -> None:
    """What it had begun to write is noted as a leftover, and the next repair does what this one would have done."""
    files, expected = lived()
    name = segment_of(files, "progress")
    data = bytearray(files.get(name))
    data[data.rindex(b'{"h"') + 70] ^= 1
    files.put(name, bytes(data))
    before = files.list()

    def cut(number: int, operation: str) -> None:
        if operation.startswith("rename"):
            raise PowerCut

    files.fail = cut
    with pytest.raises(PowerCut):
        mended(files)
    files.fail = lambda number, operation: None
    left = set(files.list()) - set(before)
    assert left
    assert left == {finding.file for finding in examine(files).findings if finding.kind == "leftover"}
    assert mended(files).ok
    assert contents(load_state(files)) == expected


@pytest.mark.parametrize("base", ["queue.json", "the generation before", "lines alone"])
def test_what_was_retired_is_in_the_archive_once_whatever_is_given_up(base: str) -> None:
    """What a checkpoint had archived stays, though the generation before does not know of it; what left the queue since is archived now."""
    files = MemoryFiles()
    files.put("archive/2024-01.jsonl", b'{"number":99}\n')
    queue = Queue(files)
    for task_id in "abc":
        queue.publish(task_id)
        queue.lease(task_id)
        queue.complete(task_id)
        queue.retire(task_id)
        if task_id != "c":
            queue.checkpoint()
    queue.publish("x")
    queue.publish("y")
    queue.close()
    name = segment_of(files, "published")
    files.put(name, files.get(name).replace(b'"x"', b"'x'"))
    if base != "queue.json":
        files.put(QUEUE, b"\xff" * 40 + files.get(QUEUE)[40:])
    if base == "lines alone":
        files.put(f"{PREVIOUS}/{QUEUE}", b"")
    for name in [name for name in files.list(PREVIOUS) if base == "lines alone" and name != QUEUE]:
        files.unlink(f"{PREVIOUS}/{name}")
    report = mended(files, accept_loss=True)
    assert (report.ok, list(load_state(files).state.tasks)) == (True, ["y"])
    queue = Queue(files)
    queue.lease("y")
    queue.complete("y")
    queue.retire("y")
    queue.checkpoint()
    assert archived(files, load_state(files)) == ["a", "b", "c", "y"]
    assert files.get("archive/2024-01.jsonl") == b'{"number":99}\n'
    queue.close()


def test_an_archive_that_cannot_be_read_is_not_taken_for_an_empty_one() -> None:
    """What stands in it would be archived again. It is the user's to move away; then a repair goes on without it."""
    files = MemoryFiles()
    files.put("archive/2025-11.jsonl", b'{"number":1}\n' * 100)
    assert archived_since(files, ArchiveMark()) == {Archived(number=1)}
    files.spoil("archive/2025-11.jsonl", range(600, 700))
    with pytest.raises(UnreadableFile, match=r"archive/2025-11\.jsonl cannot be read") as caught:
        archived_since(files, ArchiveMark())
    assert "move it away" in str(caught.value.hint)


@pytest.mark.parametrize("left", [b"", b'{"id":"other","number":4,"published_ms":1}\n'])
def test_a_repair_behind_an_archive_that_was_moved_archives_each_task_once(left: bytes) -> None:
    """Of a file that is shorter than the generation before says, all was appended since; and who had the number in an earlier queue is
    another task."""
    files = MemoryFiles()
    queue = Queue(files)
    for task_id in ("a", "b"):
        _past(queue, task_id)
    files.put("archive/2025-11.jsonl", left)
    for task_id in ("c", "d"):
        _past(queue, task_id, fold=task_id == "c")
    queue.close()
    files.put(QUEUE, files.get(QUEUE).replace(b'"last_task"', b'"last.task"'))
    assert mended(files).ok
    assert [json.loads(line)["id"] for line in files.get("archive/2025-11.jsonl").splitlines()] == [*(["other"] if left else []), "c", "d"]


@pytest.mark.parametrize("accept_loss", [False, True])
@pytest.mark.parametrize(("operation", "months"), [("sync archive", 0), ("sync_folder archive", 1)])
def test_what_a_repair_finds_in_the_archive_is_durable(operation: str, months: int, accept_loss: bool) -> None:
    """A checkpoint that was killed had written it, and not synced it: it was taken for archived, and after a power cut it was nowhere."""
    files = MemoryFiles()
    queue = Queue(files)
    for task_id in ("a", "b"):
        _past(queue, task_id)
    _past(queue, "c", fold=False)

    def kill(number: int, name: str) -> None:
        if name.startswith(operation):
            raise PowerCut(name)

    files.fail = kill
    with pytest.raises(PowerCut):
        queue.checkpoint(at_ms=AT_MS + months * 31 * 86_400_000)
    files.fail = lambda number, name: None
    queue.close()
    if accept_loss:
        files.unlink(f"{PREVIOUS}/{QUEUE}")
    files.put(QUEUE, files.get(QUEUE).replace(b'"last_task"', b'"last.task"'))
    assert mended(files, accept_loss=accept_loss).ok
    files.crash()
    found = [json.loads(line)["id"] for name in archive_files(files) for line in files.get(name).splitlines()]
    assert found == ["a", "b", "c"]


def _past(queue: Queue, task_id: str, *, fold: bool = True) -> None:
    queue.publish(task_id)
    queue.lease(task_id)
    queue.complete(task_id)
    queue.retire(task_id)
    if fold:
        queue.checkpoint()


def test_what_was_retired_is_dropped_by_a_repair_too_where_no_archive_is_kept() -> None:
    """``archive = false`` says so."""
    files = MemoryFiles()
    files.put(CONFIG_FILE, b"archive = false\n")
    queue = Queue(files)
    queue.publish("a")
    queue.lease("a")
    queue.complete("a")
    queue.retire("a")
    queue.publish("x")
    queue.close()
    name = segment_of(files, "published")
    files.put(name, files.get(name).replace(b'"x"', b"'x'"))
    assert mended(files, accept_loss=True).ok
    assert files.list("archive") == []


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("at", range(0, 2_000, 512))
def test_a_queue_json_that_the_disk_does_not_give_back_is_made_anew(closed: bool, at: int) -> None:
    """Whichever of its sectors it is: damage to any one snapshot costs nothing, be it that its bytes cannot be read at all."""
    files, expected = lived(closed=closed)
    assert len(files.get(QUEUE)) < 2_000
    files.spoil(QUEUE, range(at, at + 512))
    if at >= len(files.get(QUEUE)):
        assert examine(files).ok
        return
    [finding] = examine(files).findings
    assert (finding.file, finding.offset, finding.kind, finding.what) == (QUEUE, at, "damaged", "it cannot be read: Input/output error")
    report = mended(files)
    assert report.ok
    assert report.done[0].endswith("; the one before is in damaged-1/")
    assert contents(load_state(files)) == expected


def long_log() -> tuple[MemoryFiles, str, list[str]]:
    """A queue that has its log alone, each batch of which is longer than a sector; that log, and the ids in it."""
    files = MemoryFiles()
    queue = Queue(files)
    ids = [f"task-{number}" for number in range(40)]
    for task_id in ids:
        queue.publish(task_id, size=600)
    queue.close()
    return files, segment_of(files, "published"), ids


@pytest.mark.parametrize("lost", [range(512), range(512, 1024), range(4096, 8192), range(16_384, 16_896)])
def test_a_sector_of_a_log_that_cannot_be_read_is_named_and_read_around_when_told_to(lost: range) -> None:
    """No traceback, and nothing changed, until somebody gives up what stood there: then it is listed, and all the rest is kept."""
    files, name, ids = long_log()
    whole = files.get(name)
    files.spoil(name, lost)
    for error in (lambda: load_state(files), lambda: LogWriter.open(files, LogKind.PUBLISHED)):
        with pytest.raises(StorageError, match=f"{name} cannot be read at byte {lost.start}") as raised:
            error()
        assert (raised.value.exit_status, "--accept-loss" in raised.value.hint) == (74, True)
    for report in (examine(files), mended(files)):
        [finding] = report.findings
        assert (finding.file, finding.offset, finding.kind, report.done) == (name, lost.start, "damaged", [])
    report = mended(files, accept_loss=True)
    assert report.ok
    assert f"{name}, byte {lost.start}: {len(lost)} bytes that the disk does not give back" in report.lost
    gone = {task_id for task_id in ids if _overlaps(whole, task_id, lost)}
    assert {*load_state(files).state.tasks} == {*ids} - gone
    assert name in files.list("damaged-1")


def _overlaps(log: bytes, task_id: str, lost: range) -> bool:
    start = log.rindex(b"\n", 0, log.index(b'"%b"' % task_id.encode())) + 1
    return start < lost.stop and lost.start < log.index(b"\n", start) + 1


def test_what_cannot_be_read_of_the_generation_before_is_of_no_matter() -> None:
    """The next checkpoint replaces it."""
    files, expected = lived()
    files.spoil(f"{PREVIOUS}/{QUEUE}", range(512))
    [finding] = examine(files).findings
    assert (finding.kind, finding.harmless) == ("old-damage", True)
    assert not mended(files).done
    assert contents(load_state(files)) == expected


def test_lines_of_a_queue_json_are_kept_around_what_cannot_be_read() -> None:
    """With no generation before it."""
    files, expected = lived(closed=True)
    for name in files.list(PREVIOUS):
        files.unlink(f"{PREVIOUS}/{name}")
    data = files.get(QUEUE)
    start = data.index(b'{"id":"c"')
    files.spoil(QUEUE, range(start, start + 1))
    assert not mended(files).ok
    report = mended(files, accept_loss=True)
    assert report.ok
    assert report.lost[0] == f"{QUEUE}, byte {start // 512 * 512}: 512 bytes that the disk does not give back"
    kept = contents(load_state(files))
    assert kept
    assert kept.items() < expected.items()


@pytest.mark.parametrize("room", [0, 200, 600])
@pytest.mark.parametrize("months_later", [0, 1])
def test_a_repair_that_finds_no_room_takes_nothing_from_the_archive(room: int, months_later: int) -> None:
    """Whoever then keeps the edit after all goes on with an archive that has all it had; and so does a repair with room enough."""
    files = MemoryFiles()
    queue = Queue(files)
    for ids in ("ab", "cd", "ef"):
        queue.publish(*ids)
        queue.lease(*ids)
        queue.complete(*ids)
        queue.checkpoint()
        queue.retire(*ids)
        queue.checkpoint()
    queue.publish("g")
    queue.lease("g")
    queue.complete("g")
    queue.retire("g")
    queue.publish("h")
    queue.close()
    assert all_archived(files) == [*"abcdef"]
    files.put(QUEUE, files.get(QUEUE).replace(b'"tasks":[', b'"tasks": ['))
    files.room = room
    at_ms = AT_MS + months_later * 31 * 86_400_000
    report = mend(files, accept_loss=False, accept_edit=False, at_ms=at_ms)
    assert not report.ok
    files.room = 1 << 30
    again = files.copy()
    assert mend(again, accept_loss=False, accept_edit=False, at_ms=at_ms).ok
    assert all_archived(again) == [*"abcdefg"]
    assert mend(files, accept_loss=False, accept_edit=True, at_ms=at_ms).ok
    final_checkpoint(files, config=CONFIG, at_ms=at_ms)
    assert all_archived(files) == [*"abcdefg"]
    assert examine(files).ok


def all_archived(files: MemoryFiles) -> list[str]:
    """Ids in the archive, of all its files as far as they are committed."""
    mark = read_header(files).archive
    names = [name for name in archive_files(files) if name <= mark.file]
    whole = b"".join(files.get(name) if name < mark.file else files.get(name)[: mark.length] for name in names)
    return [json.loads(line)["id"] for line in whole.splitlines()]


def test_a_repair_that_is_killed_takes_nothing_from_the_archive() -> None:
    """At whichever of its operations: all that was archived is there when the edit is kept instead."""
    operation, ended = 0, False
    while not ended:
        files = MemoryFiles()
        queue = Queue(files)
        for task_id in "ab":
            queue.publish(task_id)
            queue.lease(task_id)
            queue.complete(task_id)
            queue.retire(task_id)
            queue.checkpoint()
        queue.close()
        files.put(QUEUE, files.get(QUEUE).replace(b'"tasks":[', b'"tasks": ['))
        left = operation

        def cut(number: int, name: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise PowerCut

        files.fail = cut
        try:
            ended = mended(files).ok
        except PowerCut:
            files.fail = lambda number, name: None
            if [finding.kind for finding in examine(files).findings if not finding.harmless]:
                assert mended(files, accept_edit=True).ok
        assert examine(files).ok
        assert all_archived(files) == ["a", "b"], operation
        operation += 1
    assert operation > 10


@pytest.mark.parametrize("ended", [False, True])
def test_a_task_whose_id_was_published_before_is_kept_though_it_is_lost_that_the_first_one_left(ended: bool) -> None:
    """An id is taken until its task has left: so the second one tells that the first has, which goes to the archive. If nobody knows any
    more how the first one ended, that is listed."""
    files = MemoryFiles()
    queue = Queue(files)
    queue.publish("a", "b")
    queue.lease("a")
    if ended:
        queue.complete("a")
    queue.checkpoint()
    if not ended:
        queue.complete("a")
    queue.retire("a")
    queue.checkpoint()
    queue.publish("a")
    queue.lease("b")
    queue.close()
    for name in archive_files(files):
        files.unlink(name)
    files.put(QUEUE, b"\xff" * 40 + files.get(QUEUE)[40:])
    [progress] = [f"{PREVIOUS}/{name}" for name in files.list(PREVIOUS) if name.startswith("progress")]
    files.put(progress, files.get(progress)[:200])
    report = mended(files, accept_loss=True)
    assert report.ok
    tasks = load_state(files).state.tasks
    assert {task.id: (task.number, task.status) for task in tasks.values()} == {
        "a": (3, TaskStatus.PENDING), "b": (2, TaskStatus.IN_PROGRESS),
    }  # fmt: skip
    assert all_archived(files) == ["a"]
    said = "task a: how number 1 ended, and that it left before number 3 was published under its id"
    assert (said in report.lost) is not ended


@pytest.mark.parametrize("accept_loss", [False, True])
def test_what_cannot_be_mended_leaves_no_folder_behind(accept_loss: bool, tmp_path: Path) -> None:
    """However often it is tried: what is still in its place needs no second name. What was replaced has one, in one folder."""
    root = tmp_path / "q"
    files = open_folder(root, create=True)
    queue = Queue(files)
    queue.publish("a", "b")
    queue.checkpoint()
    queue.publish("c")
    queue.checkpoint()
    queue.publish("d")
    queue.close()
    path = root / QUEUE
    path.write_bytes(path.read_bytes()[:-3])
    previous = root / PREVIOUS / QUEUE
    previous.write_bytes(b"")
    before = sorted(str(entry) for entry in root.rglob("*"))
    if accept_loss:
        limit = files.write_at
        files.write_at = refuse_any  # type: ignore[method-assign]
    for _ in range(3):
        with suppress(DiskFull):
            assert not mend(files, accept_loss=accept_loss, accept_edit=False, at_ms=AT_MS).ok
        assert sorted(str(entry) for entry in root.rglob("*")) == before
    if accept_loss:
        files.write_at = limit  # type: ignore[method-assign]
    assert mend(files, accept_loss=True, accept_edit=False, at_ms=AT_MS).ok
    assert [entry.name for entry in root.glob("damaged-*")] == ["damaged-1"]
    assert (root / "damaged-1" / QUEUE).exists()
    files.shut()


def refuse_any(handle: int, offset: int, data: bytes) -> int:
    raise DiskFull("no room")


def test_a_log_that_finds_no_room_to_be_mended_leaves_no_draft() -> None:
    """It would take what little room there is; the damaged log is as it was, and is mended when there is some."""
    files, expected = lived()
    name = segment_of(files, "progress")
    data = bytearray(files.get(name))
    data[data.rindex(b'{"h"') + 70] ^= 1
    files.put(name, bytes(data))
    before, files.room = files.list(), 100
    with pytest.raises(DiskFull):
        mended(files)
    assert (files.list(), files.list("damaged-1")) == (before, [])
    files.room = 1 << 30
    assert mended(files).ok
    assert contents(load_state(files)) == expected


def test_a_segment_that_goes_while_it_is_looked_at_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint passed."""
    files, expected = lived()
    opened = files.open

    def gone(name: str, *, create: bool = False) -> int:
        if name == "published-000000000001-00000000.jsonl":
            raise FileNotFoundError(name)
        return opened(name, create=create)

    files.put("published-000000000001-00000000.jsonl", b"")
    monkeypatch.setattr(files, "open", gone)
    monkeypatch.setattr(repair_module, "_count", lambda files: len(expected))
    assert examine(files).ok
