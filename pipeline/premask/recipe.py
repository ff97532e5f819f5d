"""The recipe: what the user wants, validated, in one canonical form, hashed.

    file (YAML)  <  --set key=value  <  options of the command line     the right wins

Nothing outside the recipe and the bytes of its inputs may change the bytes of the result, so whatever shapes the result
is a field here, and whatever does not (workers, progress, encoder) is not. Every problem of a recipe is named at once,
in one `UsageError`, with the place each value came from.
"""

import datetime
import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from premask.errors import UsageError

MAX_LENGTH = 2**31 - 1
"""Positions and lengths are int32."""


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


Name: TypeAlias = Annotated[str, BeforeValidator(_plain_path), Field(min_length=1), AfterValidator(_utf8)]
Date: TypeAlias = Annotated[datetime.date, BeforeValidator(_iso_date)]


class Recipe(BaseModel):
    """All that decides which bytes are prepared from which sources.

    Raises `UsageError` (not pydantic's `ValidationError`) that names every problem.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    sources: Annotated[list[Name], Field(min_length=1)]
    """Files to prepare, in this order; relative paths count from the working directory."""

    tokenizer: Name
    """Folder with tokenizer.json and tokenizer_config.json, or the name of a repository (ORG/NAME)."""

    template: Name | None = None
    """Chat template: a file or a named template; by default the tokenizer's own."""

    template_args: dict[str, JsonValue] = {}
    """Further variables for the template, such as enable_thinking; a row's own win."""

    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion"] = "auto"
    """Shape of the rows; `auto` finds it out per source."""

    max_length: Annotated[int, Field(ge=2, le=MAX_LENGTH)] = 4096
    """Length of a pack in tokens; no example is longer."""

    trim_tail: bool = True
    """Drop the tokens behind an example's last trained one, which cannot affect the loss."""

    limit: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many rows of every source."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the order of the packs."""

    date: Date = datetime.date(2025, 1, 1)
    """The day that `strftime_now` shows to templates: pinned, so that the same inputs give the same bytes."""

    train_on: Literal["all", "last", "none"] = "all"
    """Which assistant turns are trained; a message's own `train` or `weight` wins."""

    terminator: Literal["all", "last", "none"] = "all"
    """On which turns the terminator is trained."""

    reasoning: Literal["train", "mask"] = "train"
    """The thinking part of a turn."""

    tool_calls: Literal["train", "mask"] = "train"
    """The tool-call part of a turn."""

    straddle: Literal["mask", "train"] = "mask"
    """A token that holds bytes from both sides of a span's start or end."""

    control_tokens: Literal["escape", "reject", "allow"] = "escape"
    """Message text that spells a control token: encoded as plain text, the row rejected, or taken as control."""

    turns: Literal["together", "separate"] = "together"
    """One example per conversation, or one per assistant turn with its context as at inference."""

    mask: Literal["sampled", "generation"] = "sampled"
    """What is trained: what the model would emit, or what the template's {% generation %} tags enclose."""

    stop_tokens: list[Name] = []
    """Tokens that end a turn although the template writes them only as the next role's header."""

    pack: Literal["best_fit", "sequential", "none"] = "best_fit"
    """How examples are packed; `none` makes every example a pack of its own."""

    @model_validator(mode="wrap")
    @classmethod
    def _name_every_problem(cls, data: Any, build: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        try:
            return build(data)
        except ValidationError as error:
            raise UsageError(_explain(error, (info.context or {}).get("origins", {}))) from None

    @field_validator("template_args")
    @classmethod
    def _json_only(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        try:
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except ValueError:  # NaN, infinity, a lone surrogate
            raise ValueError("expected values that JSON can hold") from None
        return value

    def resolved(self) -> dict[str, Any]:
        """Every option with its value, defaults included, as JSON types: `Recipe(**recipe.resolved()) == recipe`."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON of `resolved()`."""
        text = json.dumps(self.resolved(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def recipe_from(options: Mapping[str, Any], file: Path | None = None, sets: Iterable[str] = ()) -> Recipe:
    """The recipe of one call of the command line.

    `options` holds field names and values, `None` and empty tuples standing for "not given"; `file` is YAML, one key
    per option; each of `sets` is `key=value` with a YAML value, the last of a key winning. Options win over `sets`, and
    `sets` over the file. Raises `UsageError` naming every problem and where its value came from.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    given = {key: _listed(value) for key, value in options.items() if value is not None and value != ()}
    layers = (
        (str(file), _read_file(file) if file else {}),
        ("--set", dict(_read_set(text) for text in sets)),
        ("command line", given),
    )
    for origin, layer in layers:
        values |= layer
        origins |= dict.fromkeys(layer, origin)
    return Recipe.model_validate(values, context={"origins": origins})


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# --- YAML ---------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, except that a key written twice is an error and not a silent win of the second."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    problem = f"{key.value!r} is written twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _load_yaml(text: str | bytes, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - derived from SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2025-13-01
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise UsageError(f"{where}{place}: this is no YAML that can be read: {problem}") from None


def _read_file(file: Path) -> dict[str, Any]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"recipe {file}: cannot be read: {error.strerror}") from None
    loaded = _load_yaml(content, str(file))
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise UsageError(f"recipe {file}: expected one `key: value` per line, found {_shown(loaded)}")
    return {str(key): value for key, value in loaded.items()}


def _read_set(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {text}: expected key=value, such as --set train_on=last")
    return key.strip(), _load_yaml(value, f"--set {text}")


# --- wording ------------------------------------------------------------------------------------------------------

_WORDING = {"too_short": "must not be empty", "string_too_short": "must not be empty"}
"""What pydantic words least well, by its error type."""


def _explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    lines = [_problem(dict(each), origins) for each in error.errors(include_url=False)]
    if len(lines) == 1:
        return f"the recipe is wrong: {lines[0]}"
    return "\n  ".join([f"the recipe is wrong in {len(lines)} places:", *lines])


def _problem(error: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """One line of one of pydantic's error records."""
    path: Sequence[str | int] = error["loc"] or ("recipe",)
    name = str(path[0])
    where = name + "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path[1:2])
    if name in origins:
        where += f" ({origins[name]})"
    if error["type"] == "extra_forbidden":
        return f"{where}: no such option; {_nearest(name)}"
    if error["type"] == "missing":
        usage = "name at least one SOURCE" if name == "sources" else f"give --{name}"
        return f"{where}: missing; {usage}, or set it in the recipe file"
    message = _WORDING.get(error["type"]) or str(error["msg"]).removeprefix("Value error, ")
    message = message.replace("Input should be", "expected").replace("input was not a", "expected a")
    return f"{where}: {message}, found {_shown(error['input'])}"


def _nearest(name: str) -> str:
    known = list(Recipe.model_fields)
    close = difflib.get_close_matches(name.replace("-", "_").lower(), known, n=1)
    return f"did you mean {close[0]}?" if close else f"the options are {', '.join(known)}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
