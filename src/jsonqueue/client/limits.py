"""What a handler's process may use of the machine, as far as the kernel counts it.

========================  ==========================  ===============================================================================
setting                   the kernel's name           what happens beyond it
========================  ==========================  ===============================================================================
``memory_bytes``          ``RLIMIT_AS``               an allocation fails: ``MemoryError``. Counts addresses, of each process by itself:
                                                      Python alone takes some 100 MB of them
``cpu_s``                 ``RLIMIT_CPU``              ``SIGXCPU``. Of each task, and each process by itself
``open_files``            ``RLIMIT_NOFILE``           ``OSError``: too many open files. Of each process by itself
``processes``             ``RLIMIT_NPROC``            no new process or thread. Counts *all* of this user's; root has no such limit
always                    ``RLIMIT_CORE`` = 0         no core file with a payload in it (of a program without limits: on Linux)
with any, on Linux        ``PR_SET_NO_NEW_PRIVS``     no program that it starts gains rights by setuid, so none is free of these limits
========================  ==========================  ===============================================================================

They contain a mistake: a leak, a loop, a fork bomb. They are no sandbox: the handler may read, write and connect whatever its user may.
"""

from __future__ import annotations

import math
import resource
import sys
from contextlib import suppress
from typing import Annotated, NamedTuple

from msgspec import Meta, Struct

__all__ = ["LIMIT_MAX", "Limits", "apply", "launcher", "leave_no_core", "renew_cpu"]

LIMIT_MAX = 2**62
"""The kernel's figures end a little above it; what is used already is added to some limits."""

_Most = Annotated[int, Meta(ge=1, le=LIMIT_MAX)]


class Limits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Limits of a handler in a process of its own: ``Consumer(..., limits=Limits(memory_bytes=2**30, cpu_s=60))``. None: none."""

    memory_bytes: _Most | None = None
    """Address space of each process."""
    cpu_s: _Most | None = None
    """CPU time of a task."""
    open_files: _Most | None = None
    """Open files of each process; its first three and its Pipe count."""
    processes: _Most | None = None
    """Processes and threads of this user, all together."""

    def __post_init__(self) -> None:
        """Constructing a Struct checks no ranges: this does."""
        for name in self.__struct_fields__:
            most = getattr(self, name)
            if most is not None and (type(most) is not int or not 1 <= most <= LIMIT_MAX):
                raise ValueError(f"{name} is {most!r}, and must be a whole number from 1 to {LIMIT_MAX:,}")

    def blamed(self, words: str) -> str:
        """What somebody said of a failure, with the limit that it tells of named at the end of it."""
        words = words.rstrip()
        last = words[-_LOOK_AT:]
        for name, signs in _SIGNS.items():
            most = getattr(self, name)
            if most is not None and any(sign in last for sign in signs):
                return f"{words} (limit: {name} {most:,})"
        if "killed by " in words.rpartition("\n")[2]:
            # A program that fails to allocate may end in any way.
            return f"{words} (its limits: {self})"
        return words

    def __str__(self) -> str:
        given = {name: getattr(self, name) for name in self.__struct_fields__}
        return ", ".join(f"{name} {most:,}" for name, most in given.items() if most is not None) or "none"


_LOOK_AT = 2_000
_SIGNS = {
    "cpu_s": ("SIGXCPU", "CPU time limit", "Cputime limit"),
    "memory_bytes": ("MemoryError", "annot allocate memory", "bad_alloc", "ut of memory", "emory exhausted"),
    "open_files": ("oo many open files",),
    "processes": ("esource temporarily unavailable", "can't start new thread", "annot fork"),
}
"""What programs say when they are at a limit."""


class _Bound(NamedTuple):
    kind: int
    soft: int
    hard: int


def apply(limits: Limits | None) -> None:
    """Put this process, and all that it will start, under these limits. There is no way back. None: no core file, and nothing else."""
    if limits is None:
        _lower(resource.RLIMIT_CORE, 0, 0)
        return
    _gain_no_rights()
    for kind, soft, hard in _bounds(limits):
        if kind != resource.RLIMIT_CPU:  # Of each task: it is set when one begins.
            _lower(kind, soft, hard)


def leave_no_core(pid: int) -> None:
    """Of a program that was started without limits, and has not been told of its task yet: no core file with a payload in it."""
    if sys.platform == "linux":
        with suppress(OSError):  # it has ended, or is another user's by now
            resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))


def renew_cpu(limits: Limits | None) -> None:
    """Another task begins in this process: its CPU time starts now."""
    if limits is not None and limits.cpu_s is not None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _lower(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime) + limits.cpu_s, resource.RLIM_INFINITY)


def launcher(limits: Limits) -> list[str]:
    """The beginning of a command line that puts the command behind it under these limits."""
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, ",".join(f"{kind}:{soft}:{hard}" for kind, soft, hard in _bounds(limits))]


def _bounds(limits: Limits) -> list[_Bound]:
    # A second after SIGXCPU, which may be ignored, comes SIGKILL, which may not.
    cpu = limits.cpu_s
    bounds = [_Bound(resource.RLIMIT_CORE, 0, 0)]
    bounds += [_Bound(resource.RLIMIT_CPU, cpu, cpu + 1)] if cpu else []
    for kind, most in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_NPROC, limits.processes),
    ):
        bounds += [_Bound(kind, most, most)] if most else []
    return bounds


def _lower(kind: int, soft: int, hard: int) -> None:
    """Never above what there is: to raise a limit is not for everybody."""
    _, most = resource.getrlimit(kind)
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), most if hard == resource.RLIM_INFINITY else min(hard, most)
    resource.setrlimit(kind, (soft, hard))


_PR_SET_NO_NEW_PRIVS = 38


def _gain_no_rights() -> None:
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - 5 ms that only a limited process pays

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


_LAUNCH = f"""
import os, resource, signal, sys
for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
    signal.signal(ignored, signal.SIG_DFL)
if sys.platform == "linux":
    import ctypes
    ctypes.CDLL(None).prctl({_PR_SET_NO_NEW_PRIVS}, 1, 0, 0, 0)
for bound in sys.argv[1].split(","):
    kind, soft, hard = map(int, bound.split(":"))
    _, most = resource.getrlimit(kind)
    if most != resource.RLIM_INFINITY:
        soft, hard = min(soft, most), min(hard, most)
    resource.setrlimit(kind, (soft, hard))
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"{{sys.argv[2]}} could not be started: {{error}}")
"""
"""Run by a Python that imports nothing of ours: 15 ms. Not a preexec_fn, which may deadlock in a process with threads. What Python ignores
for itself, the program would ignore as well: ``while true; do echo; done | head`` would never end."""
