"""Arrow columns to rows: the dicts that the same rows as JSON lines would give, keys and nulls as the file has them.

Text, numbers, booleans, nulls, lists and structs are JSON already. Of the rest: JSON columns (`arrow.json`) are parsed,
maps become objects, categories their values, NaN null; dates, times and decimals become their text; binary values
become text where they are UTF-8, and stay `bytes`, which `convert` refuses, where they are not. About 2 us a row.

A column of structs has one set of keys for all its rows, so that a row which lacked a key has it as null. `null_keys`
counts them; from a null that was written they cannot be told.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import orjson
import pyarrow as pa

from premask.read.conversation import Rejected
from premask.read.faults import reject, rejection_line

Fix: TypeAlias = Callable[[Any], Any]

_JSON_VALUES = (bool, int, float, str, list, dict)
_JSON = (
    *(pa.types.is_null, pa.types.is_boolean, pa.types.is_integer),
    *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
)
"""Types whose Python values are JSON values."""


class RowMaker:
    """Turns the record batches of one schema into rows."""

    def __init__(self, schema: pa.Schema) -> None:
        self.types = [_castable(field.type) for field in schema]
        fixes = {field.name: _fix(type) for field, type in zip(schema, self.types, strict=True)}
        self.fixes = [(name, fix) for name, fix in fixes.items() if fix is not None]

    def rows(self, batch: pa.RecordBatch) -> list[dict[str, Any] | bytes]:
        """`[R]` rows of a batch; one that cannot be read is a line that `parse` rejects."""
        try:
            return list(self._rows(batch))
        except (ValueError, OverflowError, pa.ArrowException) as error:
            if batch.num_rows > 1:
                return [row for n in range(batch.num_rows) for row in self.rows(batch.slice(n, 1))]
            return [rejection_line(_unreadable(error))]

    def _rows(self, batch: pa.RecordBatch) -> list[dict[str, Any]]:
        columns = [
            column if column.type == target else column.cast(target)
            for column, target in zip(batch.columns, self.types, strict=True)
        ]
        rows: list[dict[str, Any]] = pa.RecordBatch.from_arrays(columns, names=batch.schema.names).to_pylist()
        for name, fix in self.fixes:
            for row in rows:
                row[name] = fix(row[name])
        return rows


def _unreadable(error: Exception) -> Rejected:
    if isinstance(error, UnicodeDecodeError):
        found = f"byte 0x{error.object[error.start]:02x} at byte {error.start} of a text"
        return reject("invalid_utf8", "row", "UTF-8", found, "write the file again with its text as UTF-8")
    return reject("wrong_type", "row", "values that JSON can hold", str(error), "correct the row, or drop it")


def _castable(type: Any) -> Any:
    target = _plain(type)
    try:
        pa.nulls(0, type).cast(target)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        return type
    return target


def _plain(type: Any) -> Any:
    """The type a column is cast to: categories as their values, dates, times and decimals as text."""
    if pa.types.is_dictionary(type) or pa.types.is_run_end_encoded(type):
        return _plain(type.value_type)
    if pa.types.is_temporal(type) or pa.types.is_decimal(type):
        return pa.string()
    if pa.types.is_struct(type):
        return pa.struct([field.with_type(_plain(field.type)) for field in type])
    if pa.types.is_map(type):
        return pa.map_(
            type.key_field.with_type(_plain(type.key_type)), type.item_field.with_type(_plain(type.item_type))
        )
    if pa.types.is_fixed_size_list(type):
        return pa.list_(type.value_field.with_type(_plain(type.value_type)), type.list_size)
    if pa.types.is_large_list(type):
        return pa.large_list(type.value_field.with_type(_plain(type.value_type)))
    if pa.types.is_list(type):
        return pa.list_(type.value_field.with_type(_plain(type.value_type)))
    return type


def _fix(type: Any) -> Fix | None:
    """What makes JSON of the Python values of a type; None where they are JSON already."""
    if isinstance(type, pa.ExtensionType | pa.BaseExtensionType):
        return _parsed if type.extension_name == "arrow.json" else _shown
    if pa.types.is_floating(type):
        return _number
    if type in (pa.binary(), pa.large_binary(), pa.binary_view()) or pa.types.is_fixed_size_binary(type):
        return _text
    if pa.types.is_map(type):
        inner = _fix(type.item_type)
        return lambda pairs: (
            None if pairs is None else {str(key): inner(value) if inner else value for key, value in pairs}
        )
    if pa.types.is_struct(type):
        fixes = [(field.name, fix) for field in type if (fix := _fix(field.type))]
        return (lambda struct: struct and struct | {name: fix(struct[name]) for name, fix in fixes}) if fixes else None
    if hasattr(type, "value_type"):
        inner = _fix(type.value_type)
        return (lambda items: items and [inner(item) for item in items]) if inner else None
    return None if any(is_one(type) for is_one in _JSON) else _shown


def _shown(value: Any) -> Any:
    """The text of a value that has no form in JSON."""
    return value if value is None or isinstance(value, _JSON_VALUES) else str(value)


def _parsed(text: str | None) -> Any:
    return None if text is None else orjson.loads(text)


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _text(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value


def null_keys(batch: pa.RecordBatch) -> Counter[str]:
    """Count the null values of struct fields, by path such as `messages[].tool_calls[].id`; columns do not count."""
    counts: Counter[str] = Counter()
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        _count_nulls(column, name, counts)
    return counts


def _count_nulls(array: pa.Array, path: str, counts: Counter[str]) -> None:
    if pa.types.is_struct(array.type):
        for field, values in zip(array.type, array.flatten(), strict=True):
            here = f"{path}.{field.name}"
            if nulls := values.null_count - array.null_count:
                counts[here] += nulls
            _count_nulls(values, here, counts)
    elif pa.types.is_list(array.type) or pa.types.is_large_list(array.type) or pa.types.is_fixed_size_list(array.type):
        _count_nulls(array.flatten(), f"{path}[]", counts)
