"""Encoders behind one small protocol: texts in, flat ids out.

    tokenizers   the reference: what a tokenizer's ids are
    fastokens    the same ids 20 to 40 times faster where it is admitted (`admission.py`); optional: `premask[fast]`

A backend gets the reference's own description of the tokenizer: nothing is added, cut or padded. It works on one
thread: processes are the parallelism. Others were measured and left out (`tests/bench/README.md`).
"""

import importlib
import importlib.metadata
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from premask.dtypes import Int32Array, Int64Array
from premask.errors import UsageError

REFERENCE = "tokenizers"

Flat: TypeAlias = tuple[Int32Array, Int64Array]
"""Ids `[T]` of N texts, and the first token of every text `[N + 1]`."""


class Backend(Protocol):
    """An encoder of one tokenizer."""

    def encode(self, texts: Sequence[str]) -> Flat:
        """Encode texts; nothing is added, cut or padded."""


class BackendDiffers(UsageError):
    """A fast encoder gave other ids than the reference: a preparation goes on with the reference alone."""


class Fastokens:
    """https://github.com/crusoecloud/fastokens: BPE in Rust, ids in flat buffers."""

    def __init__(self, spec: bytes) -> None:
        # Read when it first encodes. A second thread only passes the work on, and waits for it spinning.
        os.environ.setdefault("FASTOKENS_BPE_THREADS", "1")
        module: Any = importlib.import_module("fastokens")
        self._tokenizer = module.Tokenizer.from_json_str(spec.decode())
        self.encode(["a"])  # what it makes at its first call (0.1 s), processes that are forked later then share

    def encode(self, texts: Sequence[str]) -> Flat:
        """As `Backend.encode`."""
        ids, offsets = self._tokenizer.encode_batch_flat(list(texts))
        return np.frombuffer(ids, np.int32), np.frombuffer(offsets, np.int64)


FAST: Mapping[str, Callable[[bytes], Backend]] = {"fastokens": Fastokens}
"""The fast encoders, the fastest first: each is made from the bytes of a `tokenizer.json`."""

BACKENDS = (REFERENCE, *FAST)
"""What `--encoder` takes besides `auto`."""


def installed(name: str) -> str | None:
    """The version of the package behind a backend; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def load(name: str, spec: bytes) -> Backend:
    """The fast encoder `name` for the tokenizer that `spec`, a `tokenizer.json`, describes.

    UsageError where it is not installed; whatever the package itself raises where it refuses the tokenizer.
    """
    if installed(name) is None:
        raise UsageError(
            f"--encoder {name}: expected the package to be installed, found that it is not; "
            "`pip install 'premask[fast]'`, or leave the option out"
        )
    return FAST[name](spec)
