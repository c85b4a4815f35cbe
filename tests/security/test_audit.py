"""S17, S18: what no broker ever does, watched in every broker process that any of the tests starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jsonqueue.broker.manager import BrokerManager
from jsonqueue.channel.registration import operate
from jsonqueue.client.publisher import Publisher


@pytest.mark.processes
def test_each_broker_is_watched(audited: Path, tmp_path: Path) -> None:
    """Both processes say so when they begin. (That they did nothing forbidden is asserted when all tests are through.)"""
    with BrokerManager(tmp_path / "queue") as manager, Publisher(manager) as publisher:
        publisher.publish({"__reduce__": ["os.system", ["touch canary"]]})
        pids = [broker.pid for broker in operate(manager.queue_dir, "status").status.brokers]
    watched = audited.read_text().splitlines()
    assert all(f"{pid} watched" in watched for pid in pids)


_IMPORTED = "import pickle, os, socket, subprocess; "


@pytest.mark.parametrize(
    ("does", "noted"),
    [
        ("pickle.loads(pickle.dumps(os.getcwd))", "pickle.find_class"),
        ("os.system('true')", "os.system"),
        ("subprocess.run(['true'])", "subprocess.Popen"),
        ("exec('1')", "exec"),
        ("eval('1')", "compile"),
        ("open('/etc/passwd').close()", "open"),
        ("os.open('../elsewhere', os.O_CREAT | os.O_WRONLY)", "open"),
        ("socket.socket(socket.AF_UNIX).bind('elsewhere')", "socket.bind"),
        ("os.close(os.open('queue.json', os.O_CREAT | os.O_WRONLY, dir_fd=os.open('.', 0)))", ""),
        ("open(__import__('sys').argv[2] + '/queue.json', 'w').close()", ""),
        ("__import__('statistics')", ""),
    ],
)
def test_the_watch_sees_it(tmp_path: Path, does: str, noted: str) -> None:
    """A process that calls itself a broker does each of them once; work in the folder, and imports, are not noted."""
    folder, report = tmp_path / "queue", tmp_path / "report"
    folder.mkdir()
    command = [sys.executable, "-c", _IMPORTED + does, "jsonqueue-publisher-broker", str(folder), "0"]
    environment = {**os.environ, "JSONQUEUE_TESTS_AUDIT": str(report)}
    subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True, timeout=30)
    watched, *lines = report.read_text().splitlines()
    assert watched.endswith(" watched")
    assert any(f" {noted} " in line for line in lines) if noted else not lines
