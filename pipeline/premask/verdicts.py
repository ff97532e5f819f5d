"""What is remembered of fast encoders: verdicts (`encode/admission.py`) in the user's cache folder.

By a hash of the tokenizer, of both encoders' versions and of the rules, so that a tokenizer is examined once. Verdicts
never change a byte of a dataset: the ids are the reference's whoever gives them, or the run goes back to the reference.
"""

import hashlib
import os
import sys
import unicodedata
from pathlib import Path

import orjson

from premask.encode.admission import RULES, Verdict
from premask.encode.backends import FAST, REFERENCE, installed
from premask.errors import MachineError
from premask.store.atomic import write_json

AUTO = "auto"

WORTH_LOADING = 4 * 2**20
"""Bytes of sources from which a backend that was admitted before repays its loading (half a second)."""


def foreseen(asked: str, spec: bytes, size: int) -> str:
    """The backend that `choose` will name for `Encoder.raw`, as far as it is remembered; else the reference."""
    if size < WORTH_LOADING and asked == AUTO:
        return REFERENCE
    for name in FAST if asked == AUTO else (asked,):
        known = recall(spec, name) if name in FAST and installed(name) else None
        if known and known.admitted:
            return name
    return REFERENCE


def remember(spec: bytes, name: str, verdict: Verdict) -> None:
    """Keep a verdict for later runs, also one that an audit overturned. A cache that cannot be written is none."""
    try:
        write_json(_place(spec, name), {"reason": verdict.reason, "texts": verdict.texts}, durable=False)
    except (OSError, RuntimeError, MachineError):  # no home at all is a RuntimeError
        return


def recall(spec: bytes, name: str) -> Verdict | None:
    """The verdict on a backend for `Encoder.raw`; None where there is none."""
    try:
        known = orjson.loads(_place(spec, name).read_bytes())
        return Verdict(str(known["reason"]), int(known["texts"]))
    except (OSError, RuntimeError, ValueError, KeyError, TypeError):
        return None


def _place(spec: bytes, name: str) -> Path:
    """Where the verdict on a backend lies: named by all that it depends on."""
    versions = [name, installed(name), installed(REFERENCE), RULES, unicodedata.unidata_version, sys.platform]
    digest = hashlib.sha256(orjson.dumps(versions) + spec).hexdigest()
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "premask" / "encoders" / f"{digest}.json"
