"""The filter by script: which share of a text is written in Latin, Han, Cyrillic or another script of Unicode.

RE2, as pyarrow has it, knows the scripts; digits, punctuation and spaces belong to none of their own (Common and
Inherited) and are not counted. Cost: about 10 ns a character and script.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from premask.errors import UsageError
from premask.mask.pieces import texts_of
from premask.read import Conversation


def script_shares(texts: Sequence[str], script: str) -> NDArray[np.float64]:
    """`[N]` the share of `script` in each of N texts; 0 for a text with no characters of any script.

    UsageError for a script that Unicode does not have.
    """
    import pyarrow.compute as pc  # here: it takes a tenth of a second, and few recipes ask for scripts

    check_script(script)
    column = pa.array(texts, pa.large_string())
    own = pc.utf8_length(pc.replace_substring_regex(column, rf"[^\p{{{script}}}]+", ""))
    counted = pc.utf8_length(pc.replace_substring_regex(column, r"[\p{Common}\p{Inherited}]+", ""))
    shares: NDArray[np.float64] = own.to_numpy() / np.maximum(counted.to_numpy(), 1)
    return shares


def check_script(script: str) -> None:
    """UsageError unless Unicode has a script of that name."""
    import pyarrow.compute as pc

    try:
        if not re.fullmatch(r"Yi|[A-Z][A-Za-z_]{2,}", script):  # shorter ones name categories of characters
            raise pa.ArrowInvalid(script)
        pc.count_substring_regex(pa.array(["a"]), rf"[\p{{{script}}}]")
    except pa.ArrowInvalid:
        raise UsageError(
            f"filters.scripts: expected a script of Unicode, such as Latin, Han or Cyrillic, found {script!r}"
        ) from None


def written_otherwise(texts: Sequence[str], scripts: Mapping[str, Sequence[float]]) -> list[str]:
    """`[N]` what keeps a text out, by the least and the most share of every script; empty where nothing does."""
    why = [""] * len(texts)
    for script, (least, most) in scripts.items():
        for n, share in enumerate(script_shares(texts, script).tolist()):
            if not least <= share <= most:
                why[n] = (
                    why[n] or f"filters: expected a share of {script} from {least:g} to {most:g}, found {share:.3f}"
                )
    return why


def text_of(conversation: Conversation) -> str:
    """What the messages say and think, one behind the other; calls of tools and their schemas are left out."""
    return "\n".join(
        text
        for message in conversation.messages
        for key in ("content", "reasoning_content")
        for text in texts_of(message.get(key))
    )
