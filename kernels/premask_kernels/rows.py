"""Labels to the list of supervised rows, on the loader's side: numpy only, so that no GPU ever has to search for them.

A causal model predicts token t from the hidden state of token t - 1, so the row of a label lies one before it. In a
prepared dataset the first token of an example is never supervised, hence a row and its target always belong to the
same example. Cost: one pass over the labels.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from premask.dtypes import IGNORE_INDEX, Float32Array, Int64Array


class SupervisedRows(NamedTuple):
    """M supervised rows of a flattened batch, ascending; padding, if any, at the end."""

    rows: Int64Array
    """`[M]` row of the hidden states that makes the prediction."""

    targets: Int64Array
    """`[M]` token id that is to be predicted."""

    weights: Float32Array | None
    """`[M]` weight of every target, 0 for padding; None where all are 1."""

    denominator: float
    """Sum of the weights, added up in float64."""


def supervised_rows(labels: ArrayLike, weights: ArrayLike | None = None, *, bucket: int = 1) -> SupervisedRows:
    """The supervised rows of `labels` `[T]` (one flattened batch, not shifted, -100 where not trained).

    `weights` `[T]` are the loss weights of the tokens; a token of weight 0 is left out. `bucket` pads M to a multiple
    of it with rows of weight 0 (row T - 1, target 0), so that shapes repeat from batch to batch, as CUDA graphs and
    torch.compile want them. Raises ValueError where the first token is supervised: nothing predicts it.
    """
    ids = np.asarray(labels).reshape(-1).astype(np.int64, copy=False)
    supervised = ids != IGNORE_INDEX
    given = None if weights is None else np.asarray(weights, np.float32).reshape(-1)
    if given is not None:
        if len(given) != len(ids):
            raise ValueError(f"weights: expected one for each of the {len(ids)} labels, found {len(given)}.")
        supervised &= given != 0
    if len(ids) and supervised[0]:
        raise ValueError("labels: the first token is supervised, but nothing stands before it to predict it.")
    places = np.flatnonzero(supervised)
    targets = ids[places]
    chosen = None if given is None else given[places]
    denominator = float(len(places) if chosen is None else chosen.sum(dtype=np.float64))
    missing = -len(places) % bucket
    if bucket > 1:
        chosen = np.ones(len(places), np.float32) if chosen is None else chosen
        chosen = np.pad(chosen, (0, missing))
    rows = np.pad(places - 1, (0, missing), constant_values=len(ids) - 1)
    return SupervisedRows(rows, np.pad(targets, (0, missing)), chosen, denominator)
