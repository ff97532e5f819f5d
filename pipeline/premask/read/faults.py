"""How a row is refused: `Fault` carries a `Rejected` from the depth of a row up to `convert`, which returns it."""

from typing import Any

import orjson

from premask.read.conversation import REASONS, Reason, Rejected

MAX_DEPTH = 100
"""Levels of nesting in free JSON (arguments, schemas). Both orjson (254) and Jinja's `tojson` (about 990) end at some
depth, in the middle of a run; a limit far below both, and far above real schemas (about 20), costs one row instead."""

MAX_NUMBER = 2.0**63
"""From here on orjson turns integers into floats, which would silently change their digits."""

MISSING = object()
"""In place of a value: the key is not there at all."""


_NOTE = b"!"


class Fault(Exception):
    """A fault of one row, never of the program: caught where the row is converted."""

    def __init__(self, reason: Reason, where: str, expected: str, found: str, remedy: str) -> None:
        super().__init__(reason, where, expected, found, remedy)
        self.rejected = reject(reason, where, expected, found, remedy)


def reject(reason: Reason, where: str, expected: str, found: str, remedy: str) -> Rejected:
    """Word a rejection: where, expected, found, remedy, always in this order."""
    return Rejected(reason, f"{where}: expected {expected}, found {found}; {remedy}")


def rejection_line(rejected: Rejected) -> bytes:
    """Write a rejection as a line that stands for its row among JSON lines: no JSON, and `noted` reads it."""
    return _NOTE + orjson.dumps([rejected.reason, rejected.detail])


def noted(raw: bytes) -> Rejected | None:
    """Read what `rejection_line` wrote; None where a line is none of these."""
    if not raw.startswith(_NOTE):
        return None
    try:
        reason, detail = orjson.loads(raw[len(_NOTE) :])
    except (orjson.JSONDecodeError, TypeError, ValueError):
        return None
    return Rejected(reason, detail) if reason in REASONS and type(detail) is str else None


def wrong_type(where: str, expected: str, value: Any, remedy: str) -> Fault:
    """Make the fault of a value that has the wrong JSON type."""
    return Fault("wrong_type", where, expected, describe(value), remedy)


def describe(value: Any) -> str:
    """Name a JSON value in a few words, however large it is."""
    if value is MISSING:
        return "nothing"
    if value is None or type(value) is bool:
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text {value[:40]!r}" + (f"... ({len(value)} characters)" if len(value) > 40 else "")
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"an object with {listed(value)}"
    if isinstance(value, bytes):
        return f"binary data ({len(value)} bytes)"
    return f"a Python {type(value).__name__}"


def listed(row: dict[str, Any]) -> str:
    """Name the first keys of an object."""
    keys = [repr(key[:40]) for key in list(row)[:8]]
    return f"the keys {', '.join(keys)}{', ...' if len(row) > 8 else ''}" if keys else "no keys"


def check_json(value: dict[str, Any] | list[Any], where: str) -> None:
    """Check free JSON, of which no shape is asked, for what no later stage could write out again unchanged.

    Raises:
        Fault: `too_deep` beyond `MAX_DEPTH` levels, `number_too_large` from `MAX_NUMBER` on.

    """
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for node in level:
            for child in node.values() if type(node) is dict else node:
                kind = type(child)
                if kind is dict or kind is list:
                    deeper.append(child)
                elif kind is bytes:
                    raise wrong_type(where, "values that JSON can hold", child, "write it as text, or drop it")
                elif kind is float and not -MAX_NUMBER < child < MAX_NUMBER:
                    remedy = "write it as text, or drop the row"
                    raise Fault("number_too_large", where, "numbers that 64 bits hold exactly", str(child), remedy)
        if not deeper:
            return
        level = deeper
    expected = f"at most {MAX_DEPTH} levels of nesting"
    raise Fault("too_deep", where, expected, "more", "flatten the value, or write it as text")
