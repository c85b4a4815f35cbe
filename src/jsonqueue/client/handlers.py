"""Finding a handler: from ``module:function`` to the function, and from a function to a name under which another process finds it again."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from msgspec import Struct

from jsonqueue.errors import InvalidHandler

__all__ = ["Address", "address_of", "is_async", "load", "resolve", "title_of"]

_SCRIPT = "__jsonqueue_script__"
"""Name under which a child process loads what is ``__main__`` in its parent, so that ``if __name__ == "__main__"`` does not run."""


class Address(Struct):
    """Where another process finds a handler."""

    module: str
    function: str
    script: str = ""
    """Path of the file to load instead of importing ``module``: the handler was defined in the program itself."""


def resolve(handler: str | Callable[..., Any]) -> Callable[..., Any]:
    """The function itself. Raises :class:`InvalidHandler` that says what was not found."""
    if callable(handler):
        return _taking_a_task(handler, title_of(handler))
    if not isinstance(handler, str):
        raise InvalidHandler(f"{handler!r} is no handler", hint="give a function, its name as module:function, or a Program")
    module, colon, function = handler.partition(":")
    if not colon or not module or not function:
        raise InvalidHandler(f"{handler!r} names no handler", hint="write it as module:function, for example tasks:resize")
    if "/" in module or module.startswith("."):
        raise InvalidHandler(
            f"{handler!r} names a path, and no module",
            hint=f"name it as an import would, {Path(module).stem or 'tasks'}:{function}, in its folder or with that in PYTHONPATH",
        )
    return _taking_a_task(load(Address(module, function)), handler)


def _taking_a_task(handler: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The handler. Raises :class:`InvalidHandler` where each call would fail, which would cost each task all of its attempts."""
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):  # some that are written in C have none
        return handler
    try:
        signature.bind(None)
    except TypeError as error:
        raise InvalidHandler(f"{name} cannot be called with a task: {error}", hint="a handler takes one argument, the task") from None
    return handler


def load(address: Address) -> Callable[..., Any]:
    """The function at an address."""
    found: Any = _load_script(address.script) if address.script else _import(address.module)
    for name in address.function.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise InvalidHandler(f"{address.script or address.module} has no {address.function!r}") from None
    if not callable(found):
        raise InvalidHandler(f"{address.module}:{address.function} is no function, but of type {type(found).__name__}")
    handler: Callable[..., Any] = found
    return handler


def _import(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(error.name + ".")):
            raise InvalidHandler(f"there is no module {error.name!r}", hint=_where_to_look(module)) from None
        raise _broken(module, error) from error
    except (Exception, SystemExit) as error:  # whatever its top level does is the module's own affair, and no bug of ours
        raise _broken(module, error) from error


def _where_to_look(module: str) -> str:
    if module.endswith(".py"):
        return f"a module is named without .py: {module.removesuffix('.py').strip('/').replace('/', '.')}"
    return f"Python looks in: {', '.join(sys.path[:4])} ..."


def _broken(module: str, error: BaseException) -> InvalidHandler:
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    what = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return InvalidHandler(
        f"{module} cannot be imported: {what}{_place_of(error)}",
        hint="the handler's module has to be importable by itself; its whole traceback: python3 -c " + shlex.quote(f"import {module}"),
    )


def _place_of(error: BaseException) -> str:
    """The file and line in which it was raised, in brackets; nothing when only the import machinery was at work."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)[1:] if not frame.filename.startswith("<")]
    own = [frame for frame in frames if frame.filename != importlib.__file__]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


def _load_script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(_SCRIPT, path)
    if spec is None or spec.loader is None:
        raise InvalidHandler(f"{path} cannot be loaded as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_SCRIPT] = module
    spec.loader.exec_module(module)
    return module


def address_of(handler: Callable[..., Any]) -> Address:
    """Where a child process finds this function. Raises :class:`InvalidHandler` when it cannot: a lambda, a closure, a bound method."""
    module, name = getattr(handler, "__module__", None), getattr(handler, "__qualname__", "")
    if not module or not name or "<" in name or inspect.ismethod(handler):
        raise InvalidHandler(
            f"{title_of(handler)} cannot be run in a child process, which has to find it by name",
            hint="use a function at the top level of a module (with timeout= or isolate=True handlers run in child processes)",
        )
    if module == "__main__":
        return _address_in_program(name)
    return Address(module, name)


def _address_in_program(name: str) -> Address:
    program = sys.modules["__main__"]
    spec = getattr(program, "__spec__", None)
    if spec is not None:  # python -m package.module
        return Address(spec.name, name)
    path = getattr(program, "__file__", None)
    if path is None or not Path(path).is_file():
        raise InvalidHandler(
            f"{name} is defined in an interactive session, where a child process cannot find it", hint="put it into a module and import it"
        )
    return Address("__main__", name, script=str(Path(path).resolve()))


def is_async(handler: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine."""
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(getattr(handler, "__call__", None))  # noqa: B004 - not whether, but which


def title_of(handler: object) -> str:
    """What to call a handler in front of people."""
    name = getattr(handler, "__qualname__", "") or type(handler).__qualname__
    module = getattr(handler, "__module__", "") or ""
    return f"{module}.{name}" if module not in {"", "__main__", "builtins"} else name
