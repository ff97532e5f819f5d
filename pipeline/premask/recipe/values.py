"""The values that options of a recipe may have: strict types, with the checks that types alone cannot say."""

import datetime
import json
import os
from itertools import pairwise
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue

MAX_LENGTH = 2**29
"""A shard holds a few packs, and its lists have 32-bit offsets."""

MAX_REPEAT = 1000
"""Times an example may be used, so that a slip of the finger does not fill the disk."""


def _plain_path(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _utf8(value: str) -> str:
    """A lone surrogate (a file name that is not UTF-8, say) fits into no manifest."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("expected text that UTF-8 can hold") from None
    return value


def _iso_date(value: object) -> object:
    """`datetime.date` of an ISO string; the model is strict, and JSON and `--set` have no dates of their own."""
    try:
        return datetime.date.fromisoformat(value) if isinstance(value, str) else value
    except ValueError:
        raise ValueError("expected a date as YYYY-MM-DD") from None


def _json_only(value: dict[str, JsonValue]) -> dict[str, JsonValue]:
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:  # NaN, infinity, a lone surrogate
        raise ValueError("expected values that JSON can hold") from None
    return value


def _range(value: object) -> object:
    """A share alone is the least one."""
    return [value, 1.0] if isinstance(value, int | float) else value


def _least_first(value: list[float]) -> list[float]:
    if value[0] > value[1]:
        raise ValueError("expected [least, most]")
    return value


def _rising(value: list[int]) -> list[int]:
    if any(a >= b for a, b in pairwise(value)):
        raise ValueError("expected rising numbers")
    return value


Name: TypeAlias = Annotated[str, BeforeValidator(_plain_path), Field(min_length=1), AfterValidator(_utf8)]
Date: TypeAlias = Annotated[datetime.date, BeforeValidator(_iso_date)]
Arguments: TypeAlias = Annotated[dict[str, JsonValue], AfterValidator(_json_only)]
Names: TypeAlias = dict[Name, Name]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Rising: TypeAlias = Annotated[list[Count], Field(min_length=1), AfterValidator(_rising)]
ShareRange: TypeAlias = Annotated[
    list[Share], BeforeValidator(_range), Field(min_length=2, max_length=2), AfterValidator(_least_first)
]

Shape: TypeAlias = Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text"]
Which: TypeAlias = Literal["all", "last", "none"]
Trained: TypeAlias = Literal["train", "mask"]
Straddle: TypeAlias = Literal["mask", "train"]
ControlTokens: TypeAlias = Literal["escape", "reject", "allow"]
Turns: TypeAlias = Literal["together", "separate"]
Mask: TypeAlias = Literal["sampled", "generation"]
