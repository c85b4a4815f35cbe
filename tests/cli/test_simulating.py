"""`jsonqueue simulate`: what it prints, and how it ends."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from unittest.mock import patch

import pytest

from cli.calls import call
from jsonqueue.broker.publisher_broker import PublisherBroker
from jsonqueue.cli.app import run
from jsonqueue.client.publisher import Publisher
from jsonqueue.event import Write, Written
from jsonqueue.simulation.verdict import Violation


def test_a_verdict_is_the_last_word() -> None:
    """Status 0, what happened, and that every promise was kept."""
    done = call("simulate", "--workers", "3", "--tasks", "40", "--crashes", "2", "--seed", "7")
    assert done.status == 0, done.out
    assert "every promise was kept" in done.out.splitlines()[-1]


def test_a_broken_promise_is_status_1_and_one_line_repeats_it() -> None:
    """The line is a command; it fails in the same way."""
    with patch.object(PublisherBroker, "step", _says_yes):
        done = call("simulate", "--workers", "2", "--tasks", "20", "--seed", "5")
        assert done.status == 1
        assert "✗ not durable" in done.out
        *_, again = done.out.splitlines()
        _, _, command = again.partition("again:  jsonqueue ")
        repeated = call(*command.split())
    assert (repeated.status, repeated.out) == (1, done.out)


def _says_yes(self: PublisherBroker, arrivals: list[tuple[int, object]], send: object) -> None:
    for peer, write in arrivals:
        assert isinstance(write, Write)
        send(peer, Written(write.request, 1))  # type: ignore[operator]


def test_a_swarm_sums_up() -> None:
    """Seeds, events, virtual time against that of a processor."""
    done = call("simulate", "--json", "--swarm", "3", "--seed", "10")
    told = json.loads(done.out)
    assert (told["seeds"], told["failed"]) == (3, 0)
    assert told["virtual_ms"] > 0 < told["processor_s"]


def test_a_real_queue_is_replayed(tmp_path: Path) -> None:
    """Its logs are checked, and its work is run again with other workers."""
    with Publisher(tmp_path / "q") as publisher:
        publisher.publish_many({"n": n} for n in range(30))
    done = call("simulate", "--replay", str(tmp_path / "q"), "--workers", "2")
    assert done.status == 0, done.out
    assert "30 tasks" in done.out
    assert "every check holds" in done.out
    assert "5 more workers" in done.out


def test_a_replay_tells_of_the_logs_in_json_too(tmp_path: Path) -> None:
    """A broken promise as well: what reads along reads JSON, line by line."""
    with Publisher(tmp_path / "q") as publisher:
        publisher.publish(1)
    whole = [json.loads(line) for line in call("simulate", "--replay", str(tmp_path / "q"), "--json").out.splitlines()]
    assert whole[0] == {"what": "the logs", "tasks": 1, "batches": 1, "same": True}
    assert [line["what"] for line in whole[1:]] == ["10 workers", "5 more workers", "no retries"]
    with patch("jsonqueue.simulation.replay.replay", side_effect=Violation("lost", "task \x1b[31m1")):
        broken = call("simulate", "--replay", str(tmp_path / "q"), "--json")
        told = call("simulate", "--replay", str(tmp_path / "q"))
    assert (broken.status, json.loads(broken.out)["violation"]) == (1, "lost: task \x1b[31m1")
    assert (told.status, told.out) == (1, "✗ lost: task \\x1b[31m1\n")


def test_a_folder_without_a_queue_is_not_replayed(tmp_path: Path) -> None:
    """It was said to keep every promise."""
    replayed = call("simulate", "--replay", str(tmp_path))
    assert (replayed.status, replayed.out, replayed.err.splitlines()[0]) == (66, "", f"Error: {tmp_path} holds no queue")
    assert "--queue" not in replayed.err  # which simulate refuses
    assert "--replay" in replayed.err


def test_an_option_that_would_not_count_is_refused(tmp_path: Path) -> None:
    """Silence would look like a report that was written."""
    spec = tmp_path / "spec.toml"
    spec.write_text("tasks = 5\n")
    for words in (("--workload", str(spec), "--html", "x"), ("--workload", str(spec), "--workers", "3"), ("--swarm", "2", "--log")):
        refused = call("simulate", *words)
        assert refused.status == 2, words
        assert words[-2] in refused.err or words[-1] in refused.err


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        ('{"task":3}', "unknown field `task`; there are publishers, consumers, concurrency, tasks, batch, "),
        ('{"weather":{"droop":0.1}}', "unknown field `droop` - at `$.weather`; there are delay_us, drop, duplicate, reorder\n"),
        ('{"habits":{"failed":0.1}}', "unknown field `failed` - at `$.habits`; there are work_us, failing, "),
        ('{"faults":[{"at_us":1,"kind":"power cut","times":2}]}', "`$.faults[0]`; there are at_us, kind, target, amount\n"),
        ('{"config":{"leese_ms":500}}', "unknown field `leese_ms` - at `$.config`; there are attempts_max, "),
        ('{"config":{"retry":{"kind":"linear","up_ms":5}}}', "unknown field `up_ms` - at `$.config.retry`\n"),
        ('{"faults":[{"at_us":1,"kind":"rain"}]}', "there is no fault 'rain', but there are kill publisher broker, "),
    ],
)
def test_a_part_of_a_scenario_that_does_not_exist_is_refused(scenario: str, said: str) -> None:
    """A fault that is misspelt would not happen, and every promise be kept; what there is stands beside it."""
    refused = call("simulate", "--scenario", scenario)
    assert (refused.status, refused.out) == (2, "")
    assert said in refused.err


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        ('{"weather":{"drop":7}}', "<= 1.0 - at `$.weather.drop`"),
        ('{"weather":{"delay_us":[60,5]}}', "delay_us goes from 60 to 5: the smaller one comes first - at `$.weather`"),
        ('{"habits":{"work_us":[60,5]}}', "work_us goes from 60 to 5"),
        ('{"habits":{"priorities":0}}', ">= 1 - at `$.habits.priorities`"),
        ('{"habits":{"again":1}}', "again_us of 1 or more - at `$.habits`"),
        ('{"faults":[{"at_us":-5,"kind":"power cut"}]}', ">= 0 - at `$.faults[0].at_us`"),
        ('{"read_us":-5}', ">= 0 - at `$.read_us`"),
    ],
)
def test_a_figure_of_a_scenario_that_cannot_be_is_refused(scenario: str, said: str) -> None:
    """It was called a bug of jsonqueue's, or counted for nothing."""
    refused = call("simulate", "--scenario", scenario)
    assert (refused.status, refused.out) == (2, "")
    assert said in refused.err


def test_one_world_of_a_swarm_can_be_looked_at(tmp_path: Path) -> None:
    """The line that a failure prints takes --log and --html."""
    page = tmp_path / "x.html"
    done = call("simulate", "--swarm", "1", "--seed", "3", "--log", "--html", str(page))
    assert done.status == 0, done.err
    assert "manager.1" in done.out
    assert page.exists()


def test_a_trace_in_json_is_json_line_by_line() -> None:
    """What reads along reads JSON, whatever else was asked for."""
    *trace, verdict = [json.loads(line) for line in call("simulate", "--tasks", "1", "--log", "--json").out.splitlines()]
    assert [*trace[0]] == ["at_ms", "who", "what", "detail"]
    assert verdict["seed"] == 1


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_simulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It cost the verdict: the whole run was made, and all that was said of it was that there is no such folder."""
    there, gone = tmp_path / "x.html", tmp_path / "no" / "x.html"
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert run(["simulate", "--html", str(gone)]) == 2
    assert "there is no such folder" in " ".join(capsys.readouterr().err.split())
    assert run(["simulate", "--html", str(there)]) == 2
    assert "no file can be made in this folder" in " ".join(capsys.readouterr().err.split())
    there.touch()
    assert run(["simulate", "--html", str(there)]) == 2
    assert "is not writable" in " ".join(capsys.readouterr().err.split())


def test_a_report_for_which_there_is_no_room_does_not_cost_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It came first; and what was told was that there is no space left, though not for what."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    page = tmp_path / "x.html"
    monkeypatch.setattr(Path, "write_text", full)
    done = call("simulate", "--tasks", "1", "--html", str(page))
    assert done.status == 74
    assert done.err == f"Error: {page}: no space left on device\n"
    assert "every promise was kept" in done.out


def test_what_is_given_wrongly_is_named(tmp_path: Path) -> None:
    """A scenario that nobody printed, a workload that is no text."""
    spec = tmp_path / "spec.toml"
    spec.write_bytes(b"\xff\xfe")
    assert "not UTF-8" in call("simulate", "--workload", str(spec)).err
    for scenario, word in (('{"consumers":0}', "consumers"), ('{"faults":[{"at_us":1,"kind":"rain"}]}', "rain"), ("\udcff", "utf-8")):
        refused = call("simulate", "--scenario", scenario)
        assert refused.status == 2
        assert word in refused.err
    assert "is no figure" in call("simulate", "--drop", "nan", "--tasks", "1").err
