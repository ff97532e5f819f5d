"""The layers of a recipe: a YAML file, `--set key=value`, the options of the command line.

    file (YAML)  <  --set key=value  <  options of the command line  <  --set sources.0.weight=2

The right wins. A value within another is set last, since no option of the command line can say it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from premask.errors import UsageError
from premask.recipe.model import Recipe
from premask.recipe.wording import shown


def recipe_from(options: Mapping[str, Any], file: Path | None = None, sets: Iterable[str] = ()) -> Recipe:
    """The recipe of one call of the command line. Raises `UsageError` naming every problem and where it came from."""
    values, origins = layered(options, file, sets)
    return Recipe.model_validate(values, context={"origins": origins})


def layered(
    options: Mapping[str, Any], file: Path | None = None, sets: Iterable[str] = ()
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of all layers, and by dotted path where each came from.

    `options` holds field names and values, `None` and empty tuples standing for "not given"; `file` is YAML, one key
    per option; each of `sets` is `key=value` with a YAML value, the last of a key winning, or `path.to.key=value`.
    Raises `UsageError` where a file or a setting cannot be read.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    given = {key: _listed(value) for key, value in options.items() if value is not None and value != ()}
    settings = [_read_set(text) for text in sets]
    layers = (
        (str(file), _read_file(file) if file else {}),
        ("--set", {key: value for key, value in settings if "." not in key}),
        ("command line", given),
    )
    for origin, layer in layers:
        values |= layer
        origins |= dict.fromkeys(layer, origin)
    for key, value in settings:
        if "." in key:
            values = _put(values, key.split("."), value, key)
            origins[key] = "--set"
    return values, origins


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _put(parent: Any, path: list[str], value: Any, key: str) -> Any:
    """`parent`, copied, with `value` at `path`: keys of mappings, numbers of list items. `key` is the whole path."""
    if not path:
        return value
    step, rest = path[0], path[1:]
    if isinstance(parent, list):
        if not step.isdecimal() or int(step) >= len(parent):
            raise UsageError(
                f"--set {key}: expected the number of an item, 0 to {len(parent) - 1}, found {step!r}"
                if parent
                else f"--set {key}: expected a list with items, found an empty one"
            )
        number = int(step)
        return [*parent[:number], _put(parent[number], rest, value, key), *parent[number + 1 :]]
    if isinstance(parent, str) and key.startswith("sources."):
        parent = {"path": parent}  # the short form of a source
    if parent is not None and not isinstance(parent, dict):
        raise UsageError(f"--set {key}: expected keys at {step!r}, found {shown(parent)}")
    inside = parent or {}
    return {**inside, step: _put(inside.get(step), rest, value, key)}


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
        raise UsageError(f"recipe {file}: expected one `key: value` per line, found {shown(loaded)}")
    return {str(key): value for key, value in loaded.items()}


def _read_set(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {text}: expected key=value, such as --set train_on=last")
    return key.strip(), _load_yaml(value, f"--set {text}")
