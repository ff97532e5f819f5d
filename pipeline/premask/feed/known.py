"""What is known of a tokenizer, from a transformers object or from its folder, and the markers that follow from it."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from premask.encode.encoder import Encoder
from premask.encode.files import TokenizerFiles
from premask.errors import UsageError
from premask.feed.unsloth_parts import unsloth_parts
from premask.mask.compiled import Sought, compile_markers, sought_by_grammar, sought_by_parts
from premask.mask.controls import Vocabulary, classify
from premask.mask.grammar import Grammar, discover
from premask.mask.responses import ResponseMarkers
from premask.mask.unsloth import UnslothMarkers, core_of, unsloth_markers
from premask.render.forms import discover_forms
from premask.render.program import Program

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
    pad: int | None = None
    """The id of the padding token, where there is one."""


def known_from_object(tokenizer: Any, stops: Sequence[int] = ()) -> KnownTokenizer:
    """From a tokenizer of transformers, or a processor that holds one. `stops` are the model's end-of-sequence ids.

    Raises UsageError where it is not one that `tokenizers` runs.
    """
    tokenizer = inner(tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UsageError(
            f"tokenizer: expected one that `tokenizers` runs (PreTrainedTokenizerFast), found "
            f"{type(tokenizer).__name__}. Load it by AutoTokenizer.from_pretrained, which makes one."
        )
    template = tokenizer.chat_template
    eos = tokenizer.eos_token_id
    return KnownTokenizer(
        tokenizer_json=backend.to_str().encode(),
        chat_template=template.get("default") if isinstance(template, dict) else template,
        special_tokens={k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)},
        stops=[*stops, *([] if eos is None else [eos])],
        pad=tokenizer.pad_token_id,
    )


def known_from_files(files: TokenizerFiles, template: str | None) -> KnownTokenizer:
    """From the files of a tokenizer, and the chat template that its rows were rendered with."""
    pad = files.special_tokens.get("pad_token")
    encoder = Encoder(files.tokenizer_json)
    return KnownTokenizer(
        tokenizer_json=files.tokenizer_json,
        chat_template=template,
        special_tokens=files.special_tokens,
        stops=files.eos_ids,
        pad=encoder.id_of(pad) if pad else None,
    )


def inner(tokenizer: Any) -> Any:
    """The tokenizer that a processor holds, or the tokenizer itself."""
    return getattr(tokenizer, "tokenizer", tokenizer)


def parts_of(tokenizer: Any, instruction_part: str | None, response_part: str | None) -> tuple[str, str] | None:
    """The response and instruction part that a call gives, or that Unsloth's `get_chat_template` left on a tokenizer.

    None where there are none. Raises UsageError where only one is given.
    """
    if (instruction_part is None) != (response_part is None):
        missing, given = ("response_part", "instruction_part")[:: 1 if response_part is None else -1]
        raise UsageError(f"{given} is given, {missing} is not: give both, or neither to have them found.")
    left = getattr(tokenizer, "_unsloth_output_part", None), getattr(tokenizer, "_unsloth_input_part", None)
    found = (response_part, instruction_part) if response_part is not None else left
    return (str(found[0]), str(found[1])) if None not in found else None


def sampled_markers(known: KnownTokenizer, parts: tuple[str, str] | None) -> tuple[ResponseMarkers, Sought]:
    """The markers for `mask="sampled"`: compiled, and as texts. `parts` are response and instruction.

    Raises UsageError where there are neither parts nor a chat template with markers.
    """
    encoder = Encoder(known.tokenizer_json)
    by_id = {token.id: token.content for token in encoder.added}
    stops = frozenset(by_id[i] for i in known.stops if i in by_id)
    vocabulary = classify(encoder.added, known.chat_template or "".join(parts or ()), stops)
    sought = _sought(known, parts, encoder, vocabulary)
    bos = known.special_tokens.get("bos_token")
    return compile_markers(sought, encoder, known.tokenizer_json, vocabulary, bos), sought


def _sought(known: KnownTokenizer, parts: tuple[str, str] | None, encoder: Encoder, vocabulary: Vocabulary) -> Sought:
    if known.chat_template is not None:
        sought = sought_by_grammar(_grammar(known.chat_template, known.special_tokens, encoder, vocabulary), parts)
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


def pad_alone(known: KnownTokenizer, sought: Sought) -> int | None:
    """The id of the padding token where it is nothing but that: no terminator, BOS or part of a marker."""
    text = known.special_tokens.get("pad_token")
    others = (*sought.headers, *sought.closings, *sought.openings, known.special_tokens.get("bos_token") or "")
    if text is None or known.pad is None or known.pad in known.stops or any(text in other for other in others):
        return None
    return known.pad


def markers_like_unsloth(tokenizer: Any, parts: tuple[str, str] | None, *, force_match: bool) -> UnslothMarkers:
    """The markers for `mask="unsloth"`. Raises UsageError where Unsloth's function would find none."""
    own = inner(tokenizer)
    added = dict(own.added_tokens_decoder)
    named = frozenset(i for i, token in added.items() if str(token).strip())
    special = frozenset([*own.all_special_ids, *(i for i, token in added.items() if token.special)])

    def tokenize(text: str) -> list[int]:
        return list(own(text, add_special_tokens=False).input_ids)

    response_part, instruction_part = parts or unsloth_parts(tokenizer, named)
    response, instruction = (core_of(p, tokenize, force_match, named) for p in (response_part, instruction_part))
    for name, part, core in (
        ("response_part", response_part, response),
        ("instruction_part", instruction_part, instruction),
    ):
        if not core.ids:
            raise UsageError(
                f"{name}: expected a text whose ids do not depend on their neighbours, found {part!r}. Give another "
                'one, or leave mask="unsloth" out: mask="sampled" finds markers by their bytes.'
            )
    return unsloth_markers(
        instruction, response, special=special, named=named, bos=own.bos_token_id, eos=own.eos_token_id
    )


def ids_masked_out(tokenizer: Any, texts: str | Sequence[str] | None) -> tuple[tuple[int, ...], ...]:
    """The ids of texts that are never trained, with a space before them where that changes their ids."""
    found: dict[tuple[int, ...], None] = {}
    own = inner(tokenizer)
    for text in [texts] if isinstance(texts, str) else texts or []:
        bare, spaced = (tuple(own(t, add_special_tokens=False).input_ids) for t in (text, f" {text}"))
        within = any(spaced[i : i + len(bare)] == bare for i in range(len(spaced) - len(bare) + 1))
        found.update(dict.fromkeys(ids for ids in ((bare,) if within else (bare, spaced)) if ids))
    return tuple(found)
