"""Loaded by every Python that the tests start. In a broker it watches, all its life, what a broker never does, and writes that down.

An audit hook sees each event whoever causes it, also from C, and cannot be taken away again. What happens while a module is imported is
left out: importing compiles, executes and opens files. See ``tests/conftest.py`` for who reads what is written.
"""

import os
import sys

_BROKERS = ("jsonqueue-publisher-broker", "jsonqueue-consumer-broker")
_NEVER = {
    "pickle.find_class", "marshal.load", "marshal.loads", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty",
    "subprocess.Popen", "exec", "compile", "socket.connect", "socket.bind", "socket.sendto", "ctypes.dlopen", "shutil.rmtree",
}  # fmt: skip
_MAY_BE_OPENED = ("/dev/null", "/dev/full", "/proc/", "/etc/localtime", "/usr/share/zoneinfo/")
"""``/dev/full`` is what a test puts in place of a file on a full disk."""


def _watch(folder: str, report: str) -> None:
    """From here on, note each forbidden event as a line of ``report``."""
    real = os.path.realpath(folder)
    busy = False

    def note(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal busy
        if busy or (event not in _NEVER and event != "open"):
            return
        if event == "open" and _is_within(arguments[0], folder, real):
            return
        busy = True
        try:
            if not _is_code_of_ours():
                _write(report, f"{event} {arguments!r}"[:300])
        finally:
            busy = False

    _write(report, "watched")
    sys.addaudithook(note)


def _is_within(path: object, folder: str, real: str) -> bool:
    """A name relative to the folder's descriptor, the folder itself, a file in it, or nothing that matters."""
    if not isinstance(path, str):
        return True  # a descriptor that is open already
    if not path.startswith("/"):
        return ".." not in path.split("/")
    known = (folder, real, os.path.abspath(folder))
    return path.startswith(_MAY_BE_OPENED) or ".coverage" in path or any(path == one or path.startswith(one + "/") for one in known)


def _is_code_of_ours() -> bool:
    """Whether it is part of importing a module, of reading the annotations of a class of ours (msgspec does, when it is first used), or
    comes before the first line is run."""
    frame = sys._getframe(1).f_back
    if frame is None:
        return True
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib") or frame.f_code.co_filename.endswith("msgspec/_utils.py"):
            return True
        frame = frame.f_back
    return False


def _write(report: str, line: str) -> None:
    fd = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, f"{os.getpid()} {line}\n".encode("utf-8", "backslashreplace"))
    os.close(fd)


if len(sys.orig_argv) > 4 and sys.orig_argv[1] == "-c" and sys.orig_argv[3] in _BROKERS and os.environ.get("JSONQUEUE_TESTS_AUDIT"):
    _watch(sys.orig_argv[4], os.environ["JSONQUEUE_TESTS_AUDIT"])
