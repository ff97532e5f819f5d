"""How rows are masked, from a call's arguments: the markers, and what else there is to know of a tokenizer's rows."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

from premask.errors import UsageError
from premask.feed.known import (
    KnownTokenizer,
    ids_masked_out,
    known_from_object,
    markers_like_unsloth,
    pad_alone,
    sampled_markers,
)
from premask.feed.rows import Masking

Mask = Literal["sampled", "unsloth"]
"""What is trained: premask's definition, or what Unsloth's function trains."""


def masking_for(
    tokenizer: Any,
    parts: tuple[str, str] | None,
    *,
    mask: Mask = "sampled",
    force_match: bool = True,
    last_response_only: bool = False,
    mask_out_tokens: str | Sequence[str] | None = None,
    stops: Sequence[int] = (),
) -> Masking:
    """How the rows of a tokenizer are masked. `parts` are response and instruction part, where they are given."""
    masked_out = ids_masked_out(tokenizer, mask_out_tokens)
    if mask == "unsloth":
        like = markers_like_unsloth(tokenizer, parts, force_match=force_match)
        return Masking(markers=like, last_response_only=last_response_only, masked_out=masked_out)
    if mask != "sampled":
        raise UsageError(f'mask: expected "sampled" or "unsloth", found {mask!r}.')
    return sampled_masking(known_from_object(tokenizer, stops), parts, last_response_only, masked_out)


def sampled_masking(
    known: KnownTokenizer,
    parts: tuple[str, str] | None,
    last_response_only: bool = False,
    masked_out: tuple[tuple[int, ...], ...] = (),
) -> Masking:
    """How rows are masked by premask's definition."""
    markers, sought = sampled_markers(known, parts)
    if sought.unfollowed:
        warnings.warn(
            f"The markers of this chat template cannot follow {', '.join(sought.unfollowed)}: of rows with them, turns "
            "may be left untrained. `premask prepare` masks such conversations from their texts.",
            stacklevel=4,
        )
    return Masking(
        markers=markers, last_response_only=last_response_only, masked_out=masked_out, pad=pad_alone(known, sought)
    )
