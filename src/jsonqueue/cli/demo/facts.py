"""The work of the demo: what one source file, or one JSON record, has to say about itself. Tasks and direct pass share this code."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiofiles

__all__ = ["Facts", "facts_of", "facts_of_file", "facts_of_record", "facts_of_source"]

Facts = dict[str, Any]
"""Figures by name; for a file that cannot be parsed also ``error``."""

_BLOCKS = ("body", "orelse", "finalbody")


async def facts_of(data: dict[str, Any]) -> Facts:
    """The handler: ``{"root": …, "path": …}`` is a file, ``{"record": …}`` a value of a JSON Lines file."""
    if "record" in data:
        return facts_of_record(data["record"])
    async with aiofiles.open(Path(data["root"], data["path"]), "rb") as file:
        return facts_of_source(data["path"], await file.read())


def facts_of_file(root: str, path: str) -> Facts:
    """The same without a queue, for the direct pass."""
    return facts_of_source(path, Path(root, path).read_bytes())


def facts_of_source(path: str, source: bytes) -> Facts:
    """Lines and bytes of any file; of Python source also what it defines and imports. One that is no valid Python gets an ``error``."""
    facts: Facts = {"bytes": len(source), "lines": source.count(b"\n") + (not source.endswith(b"\n") and source != b"")}
    if not path.endswith((".py", ".pyi")):
        return facts
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape sequence in somebody's test data is not our business
            tree = ast.parse(source)
    # Test data with bad syntax, NULs, unknown encodings, nesting without end: an answer like any other, not a failure to try again.
    except (SyntaxError, ValueError, LookupError, RecursionError, MemoryError) as error:
        return {**facts, "error": f"{type(error).__name__}: {getattr(error, 'msg', '') or error}"}
    return {**facts, **_facts_of_tree(tree)}


def _facts_of_tree(tree: ast.Module) -> Facts:
    functions = classes = coroutines = imports = 0
    longest, longest_lines = "", 0
    for node, name in _definitions(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports += len(node.names)
        elif isinstance(node, ast.ClassDef):
            classes += 1
        else:
            functions += 1
            coroutines += isinstance(node, ast.AsyncFunctionDef)
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > longest_lines:
                longest, longest_lines = name, lines
    return {
        "functions": functions, "async_functions": coroutines, "classes": classes, "imports": imports,
        "longest_function": longest, "longest_function_lines": longest_lines,
    }  # fmt: skip


_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom


def _definitions(tree: ast.Module) -> Iterator[tuple[_Definition, str]]:
    """Functions, classes and imports with their qualified names, in source order.

    Definitions are statements, so that the walk descends into blocks only and leaves out the expressions, which are most of a tree.
    It keeps its own stack: a machine-written file may nest deeper than Python recurses.
    """
    stack: list[tuple[Any, str]] = [(tree, "")]
    while stack:
        node, prefix = stack.pop()
        if isinstance(node, _Definition):
            name = f"{prefix}{getattr(node, 'name', '')}"
            yield node, name
            prefix = f"{name}."
        stack.extend((child, prefix) for child in reversed(list(_blocks(node))))


def _blocks(node: Any) -> Iterator[Any]:
    for block in _BLOCKS:
        children = getattr(node, block, None)
        if isinstance(children, list):  # the body of a lambda or of a conditional expression is none
            yield from children
    yield from getattr(node, "handlers", ())
    yield from getattr(node, "cases", ())


def facts_of_record(record: Any) -> Facts:
    """How large and how deep a JSON value is, and what it consists of."""
    values = keys = depth_max = text = 0
    stack: list[tuple[Any, int]] = [(record, 1)]
    while stack:
        value, depth = stack.pop()
        values += 1
        depth_max = max(depth_max, depth)
        if isinstance(value, dict):
            keys += len(value)
            stack.extend((child, depth + 1) for child in value.values())
        elif isinstance(value, list):
            stack.extend((child, depth + 1) for child in value)
        elif isinstance(value, str):
            text += len(value)
    return {"values": values, "keys": keys, "characters": text, "depth": depth_max}
