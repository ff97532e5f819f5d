"""The filter by expression: a condition over the columns of source rows, in the SQL of polars, which runs no code.

polars is imported when there is such a filter, and not before.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from premask.dtypes import BoolArray
from premask.errors import UsageError

COLUMNS = ("length", "supervised", "turns", "source")


def condition(expression: str, sources: Sequence[str]) -> Callable[[Mapping[str, NDArray[np.generic]]], BoolArray]:
    """The condition that `expression` states, such as `supervised > 0.1 * length AND source <> 'web.jsonl'`.

    It takes columns `[R]`: `length`, `supervised`, `turns`, and `source` as numbers of `sources`, which the expression
    sees as their names; it returns `[R]` which rows pass (a null does not). UsageError where the expression cannot be
    read or is no condition.
    """
    import polars as pl

    def passing(columns: Mapping[str, NDArray[np.generic]]) -> BoolArray:
        numbers = pl.Series("source", columns["source"], dtype=pl.UInt32)
        named = pl.Series(sources, dtype=pl.String).gather(numbers)
        table = pl.DataFrame({**{name: columns[name] for name in COLUMNS[:3]}, "source": named})
        try:
            found = table.select(keep=pl.sql_expr(expression))["keep"]
        except pl.exceptions.PolarsError as error:
            raise UsageError(
                f"filters.expression: expected a condition over {', '.join(COLUMNS)} in SQL, found {expression!r}: "
                f"{str(error).splitlines()[0]}"
            ) from None
        if found.dtype != pl.Boolean:
            raise UsageError(
                f"filters.expression: expected a condition, found {expression!r}, which is {found.dtype}; "
                "compare it with something"
            )
        return np.broadcast_to(found.fill_null(False).to_numpy(), len(table)).copy()

    passing({name: np.zeros(0, np.int32) for name in COLUMNS})
    return passing
