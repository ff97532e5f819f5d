"""What is said of a recipe that is wrong: one line a problem, with the place each value came from."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

_BETTER = {
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "model_type": "expected keys with their values",
}
"""What pydantic words least well, by its error type."""

TAGS = ("path", "options")
"""How the two forms of a source are told apart; pydantic puts the tag into the place of an error."""

Known = Mapping[str, Sequence[str]]
"""The options that there are: those of the recipe under "", those of its nested parts under their names."""


def explain(error: ValidationError, origins: Mapping[str, str], known: Known, what: str = "the recipe") -> str:
    """Every problem of a recipe (or `what` else it is); `origins` says by dotted path where values came from."""
    lines = [_problem(dict(each), origins, known) for each in error.errors(include_url=False)]
    if len(lines) == 1:
        return f"{what} is wrong: {lines[0]}"
    return "\n  ".join([f"{what} is wrong in {len(lines)} places:", *lines])


def _problem(error: Mapping[str, Any], origins: Mapping[str, str], known: Known) -> str:
    """One line of one of pydantic's error records."""
    place = _place(error["loc"])
    where = _written(place) + _origin(place, origins)
    kind, message = error["type"], str(error["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        return f"{where}: no such option; {nearest(str(place[-1]), known['' if len(place) == 1 else str(place[0])])}"
    if kind == "missing":
        return f"{where}: missing; {_remedy(place)}"
    if not place:
        return message
    message = _BETTER.get(kind, message)
    message = message.replace("Input should be", "expected").replace("input was not a", "expected a")
    return f"{where}: {message}, found {shown(error['input'])}"


def _place(loc: Sequence[str | int]) -> list[str | int]:
    """Where in the recipe, without pydantic's tags."""
    return [*loc[:2], *(step for n, step in enumerate(loc[2:]) if n or loc[0] != "sources" or step not in TAGS)]


def _written(place: Sequence[str | int]) -> str:
    """`sources[2].weight`; of values that the user nests himself no more than the first key."""
    depth = 3 if place[:1] in (["sources"], ["filters"]) else 2
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place[:depth]).removeprefix(".")


def _origin(place: Sequence[str | int], origins: Mapping[str, str]) -> str:
    """Where the value came from: what was said last of it, or of the longest beginning of its path."""
    for length in range(len(place), 0, -1):
        if found := origins.get(".".join(map(str, place[:length]))):
            return f" ({found})"
    return ""


def _remedy(place: Sequence[str | int]) -> str:
    if len(place) > 1:
        return f"write `{place[-1]}: ...` there"
    usage = "name at least one SOURCE" if place[0] == "sources" else f"give --{place[0]}"
    return f"{usage}, or set it in the recipe file"


def nearest(name: str, known: Sequence[str]) -> str:
    """The remedy for an option that is not known."""
    close = difflib.get_close_matches(name.replace("-", "_").lower(), known, n=1)
    return f"did you mean {close[0]}?" if close else f"the options are {', '.join(known)}"


def shown(value: object) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
