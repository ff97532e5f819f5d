"""From a tokenizer to the markers of its chat template, for rows of which only the ids are known.

The tokenizer is an object of transformers (or a processor that holds one), or a folder's files.
"""

import datetime
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from premask.encode.encoder import Encoder
from premask.encode.files import TokenizerFiles
from premask.errors import UsageError
from premask.feed.rows import Masking
from premask.feed.unsloth_parts import unsloth_parts
from premask.mask.controls import Vocabulary, classify
from premask.mask.grammar import Grammar, discover
from premask.mask.responses import SpeltMarkers
from premask.mask.sought import Sought, sought_by_grammar, sought_by_parts, spell_markers
from premask.mask.unsloth import UnslothMarkers, core_of, unsloth_markers
from premask.render.forms import discover_forms
from premask.render.program import Program

Mask = Literal["sampled", "unsloth"]
"""What is trained: premask's definition, or what Unsloth's function trains."""

Parts = tuple[str, str]
"""What a user's turn and what an assistant's turn begins with."""

DATE = datetime.date(2025, 1, 1)
"""What a template that prints the date is probed with; markers hold no dates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownTokenizer:
    """A tokenizer as far as markers need it."""

    tokenizer_json: bytes
    chat_template: str | None
    special_tokens: Mapping[str, str]
    """Named tokens: `bos_token`, `eos_token` and the like."""
    stops: Sequence[int]
    """Ids on which generation stops."""


def known_from_object(tokenizer: Any, stops: Sequence[int] = ()) -> KnownTokenizer:
    """From a tokenizer of transformers. `stops` are the model's end-of-sequence ids.

    Raises UsageError where it is not one that `tokenizers` runs.
    """
    own = inner(tokenizer)
    backend = getattr(own, "backend_tokenizer", None)
    if backend is None:
        raise UsageError(
            f"tokenizer: expected one that `tokenizers` runs (PreTrainedTokenizerFast), found "
            f"{type(own).__name__}. Load it by AutoTokenizer.from_pretrained, which makes one."
        )
    template = own.chat_template or getattr(tokenizer, "chat_template", None)
    return KnownTokenizer(
        tokenizer_json=backend.to_str().encode(),
        chat_template=template.get("default") if isinstance(template, dict) else template,
        special_tokens={k: v for k, v in own.special_tokens_map.items() if isinstance(v, str)},
        stops=[*stops, *([] if own.eos_token_id is None else [own.eos_token_id])],
    )


def known_from_files(files: TokenizerFiles, template: str | None) -> KnownTokenizer:
    """From the files of a tokenizer, and the chat template that its rows were rendered with."""
    return KnownTokenizer(
        tokenizer_json=files.tokenizer_json,
        chat_template=template,
        special_tokens=files.special_tokens,
        stops=files.eos_ids,
    )


def inner(tokenizer: Any) -> Any:
    """The tokenizer that a processor holds, or the tokenizer itself."""
    return getattr(tokenizer, "tokenizer", tokenizer)


def parts_of(tokenizer: Any, instruction_part: str | None, response_part: str | None) -> Parts | None:
    """The parts that a call gives, or else those that Unsloth's `get_chat_template` left on a tokenizer.

    None where there are none. Raises UsageError where only one is given.
    """
    if instruction_part is not None and response_part is not None:
        return instruction_part, response_part
    if instruction_part is not None or response_part is not None:
        raise UsageError("Give both instruction_part and response_part, or neither to have them found.")
    left = [getattr(inner(tokenizer), f"_unsloth_{name}_part", None) for name in ("input", "output")]
    return None if None in left else (str(left[0]), str(left[1]))


def find_markers(tokenizer: Any, instruction_part: str | None = None, response_part: str | None = None) -> SpeltMarkers:
    """The markers of a tokenizer's chat template, or given parts, for `mask_responses`.

    Raises UsageError where only one part is given, and where there is no template in which markers can be found.
    """
    return sampled_markers(known_from_object(tokenizer), parts_of(tokenizer, instruction_part, response_part))[0]


def sampled_markers(known: KnownTokenizer, parts: Parts | None) -> tuple[SpeltMarkers, Sought]:
    """The markers for `mask="sampled"`: as bytes to search for, and as texts.

    Raises UsageError where there are neither parts nor a chat template with markers.
    """
    encoder = Encoder(known.tokenizer_json)
    by_id = {token.id: token.content for token in encoder.added}
    stops = frozenset(by_id[i] for i in known.stops if i in by_id)
    vocabulary = classify(encoder.added, known.chat_template or "".join(parts or ()), stops)
    sought = _sought(known, parts, encoder, vocabulary)
    markers = (*sought.headers, *sought.closings, *sought.openings)
    named = (known.special_tokens.get(name) for name in ("bos_token", "pad_token"))
    restarts = [token for token in named if token and not any(token in marker for marker in markers)]
    return spell_markers(sought, encoder, known.tokenizer_json, vocabulary, restarts), sought


def _sought(known: KnownTokenizer, parts: Parts | None, encoder: Encoder, vocabulary: Vocabulary) -> Sought:
    if known.chat_template is not None:
        grammar = _grammar(known.chat_template, known.special_tokens, encoder, vocabulary)
        sought = sought_by_grammar(grammar, parts, vocabulary)
        if sought is not None:
            return sought
    if parts is None:
        raise UsageError(
            "The tokenizer has no chat template to find markers in. Give instruction_part and response_part, or put a "
            "template on it: `premask.get_chat_template(tokenizer, NAME)`."
        )
    return sought_by_parts(*parts, vocabulary, known.special_tokens.get("eos_token"))


def _grammar(template: str, special_tokens: Mapping[str, str], encoder: Encoder, vocabulary: Vocabulary) -> Grammar:
    program: Any = partial(Program, template, special_tokens, DATE)
    forms = discover_forms(program(lambda rendering: (rendering.pieces, None)).render_plain)
    return discover(program, vocabulary, encoder, forms)


def markers_like_unsloth(tokenizer: Any, parts: Parts | None, *, force_match: bool) -> UnslothMarkers:
    """The markers for `mask="unsloth"`. Raises UsageError where Unsloth's function would find none."""
    own = inner(tokenizer)
    added = dict(own.added_tokens_decoder)
    named = frozenset(i for i, token in added.items() if str(token).strip())
    special = frozenset([*own.all_special_ids, *(i for i, token in added.items() if token.special)])

    def tokenize(text: str) -> list[int]:
        return list(own(text, add_special_tokens=False).input_ids)

    instruction, response = parts or unsloth_parts(tokenizer, named)
    cores = [core_of(part, tokenize, force_match, named) for part in (instruction, response)]
    for name, part, core in zip(("instruction_part", "response_part"), (instruction, response), cores, strict=True):
        if not core.ids:
            raise UsageError(
                f"{name}: expected a text whose ids do not depend on their neighbours, found {part!r}. Give another "
                'one, or leave mask="unsloth" out: mask="sampled" finds markers by their bytes.'
            )
    return unsloth_markers(*cores, special=special, named=named, bos=own.bos_token_id, eos=own.eos_token_id)


def sampled_masking(known: KnownTokenizer, parts: Parts | None, *, last_response_only: bool) -> Masking:
    """How rows are masked by premask's definition."""
    markers, sought = sampled_markers(known, parts)
    if sought.unfollowed:
        warnings.warn(
            f"The markers of this chat template cannot follow {', '.join(sought.unfollowed)}: rows with them may be "
            "masked wrongly. `premask prepare` masks such conversations from their texts.",
            stacklevel=4,
        )
    return Masking(markers=markers, vocabulary_size=len(markers.white), last_response_only=last_response_only)


def masking_for(
    tokenizer: Any,
    parts: Parts | None,
    *,
    mask: Mask,
    force_match: bool,
    last_response_only: bool,
    mask_out_tokens: str | Sequence[str] | None,
    stops: Sequence[int] = (),
) -> Masking:
    """How the rows of a tokenizer of transformers are masked; `stops` are its model's end-of-sequence ids."""
    masked_out = _ids_masked_out(inner(tokenizer), mask_out_tokens)
    if mask == "sampled":
        known = known_from_object(tokenizer, stops)
        return replace(sampled_masking(known, parts, last_response_only=last_response_only), masked_out=masked_out)
    if mask != "unsloth":
        raise UsageError(f'mask: expected "sampled" or "unsloth", found {mask!r}.')
    return Masking(
        markers=markers_like_unsloth(tokenizer, parts, force_match=force_match),
        vocabulary_size=2**31,
        last_response_only=last_response_only,
        masked_out=masked_out,
    )


def _ids_masked_out(tokenizer: Any, texts: str | Sequence[str] | None) -> tuple[tuple[int, ...], ...]:
    """The ids of texts that are never trained, with a space before them where that changes their ids."""
    found: dict[tuple[int, ...], None] = {}
    for text in [texts] if isinstance(texts, str) else texts or []:
        bare, spaced = (tuple(tokenizer(t, add_special_tokens=False).input_ids) for t in (text, f" {text}"))
        within = any(spaced[i : i + len(bare)] == bare for i in range(len(spaced) - len(bare) + 1))
        found.update(dict.fromkeys(ids for ids in ((bare,) if within else (bare, spaced)) if ids))
    return tuple(found)
