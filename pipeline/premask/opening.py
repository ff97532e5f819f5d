"""How workers are made ready: what all of them need is loaded, once, before they are forked."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson

from premask.clock import spent
from premask.clock import stage as clocked
from premask.encode.backends import REFERENCE, load
from premask.encode.encoder import bare
from premask.encode.files import load_tokenizer_files
from premask.verdicts import foreseen


def make_ready(
    recipe: dict[str, Any], tokenizer: str, templating: Mapping[str, Any], encoder: str, size: int
) -> dict[str, Any]:
    """Load what `steps.mask_partition` will need with the same arguments, for sources of `size` bytes.

    `encoder` is what was asked for; which it is shows later, and a partition says what it takes. Returns the seconds
    that it took, by stage.
    """
    with spent() as seconds, clocked("set-up"), ThreadPoolExecutor(1) as aside:
        spec = orjson.dumps(bare(load_tokenizer_files(tokenizer).tokenizer_json))
        name = foreseen(encoder, spec, size)
        fast = None if name == REFERENCE else aside.submit(load, name, spec)  # Rust, beside all that Python loads
        from premask.maskers import masker_for
        from premask.steps import mask_partition  # noqa: F401 - with all that it imports

        masker = masker_for(orjson.dumps(recipe).decode(), tokenizer, orjson.dumps(templating).decode())
        masker.encoder.use(name, fast.result() if fast else None)
    return seconds
