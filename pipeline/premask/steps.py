"""The steps of a preparation that work items carry out: files in, files and a small result out.

Each is a pure function of its arguments and the files they name; who calls it, where, how often and in which order
changes nothing. A step returns `{"written": [[path, size, sha256], ...], "result": {...}}`.
"""

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from premask.dtypes import Examples, take
from premask.encode.encoder import Encoder
from premask.encode.files import TokenizerFiles, load_tokenizer_files
from premask.errors import DataError, UsageError
from premask.mask.controls import Vocabulary, classify
from premask.mask.masker import Masker
from premask.pack.overflow import trim_tail
from premask.read import (
    Conversation,
    Format,
    Line,
    Partition,
    Rejected,
    convert,
    cut_array,
    digest_file,
    parse,
    read_partition,
)
from premask.recipe import Recipe
from premask.render.named import resolve_template
from premask.store.atomic import Written, atomic_write
from premask.store.layout import shard_path
from premask.store.plan_file import PLAN, read_plan
from premask.store.shards import write_shard
from premask.store.stage import read_stage, write_stage

BATCH_ROWS = 512
BATCH_BYTES = 4 * 2**20
"""Rows rendered, encoded and masked at a time: at most so many, or so many bytes of them."""

WHITE_SPACE = "".join(c for c in map(chr, range(0x3001)) if c.isspace())

Step = dict[str, Any]


def digest_source(path: str) -> Step:
    """SHA-256 and size of a source."""
    return {"written": [], "result": {"sha256": digest_file(Path(path)), "size": Path(path).stat().st_size}}


def cut_source(path: str, folder: str, piece_bytes: int, identity: str) -> Step:
    """Cut a JSON array into pieces of JSON lines: files that can be read in parallel."""
    written: list[Written] = []

    def write_piece(number: int, lines: bytes) -> None:
        piece = Path(folder) / f"piece-{number:05d}.jsonl"
        with atomic_write(piece, durable=False) as file:
            file.write(lines)
        written.append(file.written(piece))

    cut_array(Path(path), write_piece, piece_bytes)
    return {"written": _entries(written), "result": {"pieces": [[str(w.path), w.size] for w in written]}}


def mask_partition(
    partition: dict[str, Any],
    format: Format,
    limit: int | None,
    rows: Sequence[int] | None,
    recipe: dict[str, Any],
    tokenizer: str,
    templating: dict[str, Any],
    stage: str,
    rejects: str,
    identity: str,
) -> Step:
    """Phase 1: the rows of one partition to a stage file of examples and a file of rejected rows.

    Of all rows (`rows` is None) or of the chosen ones alone, which are then counted from 0.
    """
    chosen = Recipe(**recipe)
    masker = masker_for(orjson.dumps(recipe).decode(), tokenizer, orjson.dumps(templating).decode())
    counts: Counter[str] = Counter()
    rejected: dict[int, Rejected] = {}
    lines: Iterator[Line] = islice(read_partition(Partition(**{**partition, "path": Path(partition["path"])})), limit)
    if rows is not None:
        chosen_rows = set(rows)
        lines = (line for number, line in enumerate(lines) if number in chosen_rows)

    def batches() -> Iterator[Examples]:
        for first, batch in _batched(lines):
            yield _masked(masker, format, chosen, first, batch, rejected, counts)
            counts["rows"] += len(batch)

    written = [write_stage(Path(stage), batches())]
    with atomic_write(Path(rejects), durable=False) as file:
        for row, why in sorted(rejected.items()):
            file.write(orjson.dumps({"row": row, "reason": why.reason, "detail": why.detail}) + b"\n")
    written.append(file.written(Path(rejects)))
    reasons = Counter(why.reason for why in rejected.values())
    return {"written": _entries(written), "result": {"counts": dict(counts), "rejected": dict(reasons)}}


def build_shard(
    out: str,
    stages: Sequence[str],
    split: str,
    number: int,
    count: int,
    source_turns: bool,
    weights: bool,
    identity: str,
) -> Step:
    """Phase 3: the packs of one shard, gathered from the stage files."""
    rows = read_plan(Path(out) / PLAN).shard(split, number)
    needed = {int(n): read_stage(Path(stages[n])) for n in np.unique(rows.partition)}
    path = shard_path(Path(out), split, number, count)
    entry = write_shard(path, needed, rows, source_turns=source_turns, weights=weights)
    return {"written": [[str(path), entry.bytes, entry.sha256]], "result": asdict(entry)}


def _entries(written: Sequence[Written]) -> list[list[Any]]:
    return [[str(w.path), w.size, w.sha256] for w in written]


def _batched(lines: Iterator[Line]) -> Iterator[tuple[int, list[Line]]]:
    """Batches of rows, each with the number of its first row within the partition."""
    first, batch, size = 0, list[Line](), 0
    for line in lines:
        batch.append(line)
        size += len(line.raw)
        if len(batch) == BATCH_ROWS or size >= BATCH_BYTES:
            yield first, batch
            first, batch, size = first + len(batch), [], 0
    if batch:
        yield first, batch


def _masked(
    masker: Masker,
    format: Format,
    recipe: Recipe,
    first: int,
    batch: list[Line],
    rejected: dict[int, Rejected],
    counts: Counter[str],
) -> Examples:
    """One batch of rows to examples; notes every row that is rejected, and why."""
    rows: list[int] = []
    conversations: list[Conversation] = []
    for number, line in enumerate(batch, first):
        parsed = parse(line.raw)
        conversation = parsed if isinstance(parsed, Rejected) else convert(format, parsed)
        if isinstance(conversation, Conversation):
            conversation = _within_reach(conversation, len(line.raw), masker.encoder.bytes_per_token, recipe)
        if isinstance(conversation, Rejected):
            rejected[number] = conversation
        else:
            rows.append(number)
            conversations.append(conversation)
    masked = masker.mask(conversations)
    counts.update(masked.counts)
    for place, failure in masked.failures.items():
        rejected[rows[place]] = Rejected(failure.reason, failure.detail)
    examples = _fitted(masked.examples, recipe, np.array(rows, np.int64), rejected, counts)
    counts["examples"] += len(examples)
    return examples


def _within_reach(
    conversation: Conversation, size: int, bytes_per_token: int | None, recipe: Recipe
) -> Conversation | Rejected:
    """Refuse a row that is too long whatever its tokens are: encoding 50 MB takes 12 GB of memory. `size` in bytes."""
    if bytes_per_token is None or recipe.mask == "generation" or size <= recipe.max_length * bytes_per_token:
        return conversation
    messages, stated = conversation.messages, conversation.weights or [None] * len(conversation.messages)
    answers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    default = {"all": answers, "last": answers[-1:], "none": []}[recipe.train_on]
    lengths = [_ink(message.get("content")) for message in messages]
    trained = [n for n in answers if lengths[n] and (n in default if stated[n] is None else stated[n])]
    least = sum(lengths[: trained[-1] + 1]) // bytes_per_token if trained else 0
    if least <= recipe.max_length:
        return conversation
    return Rejected(
        "too_long", f"expected at most {recipe.max_length} tokens, found more than {least}; raise --max-length"
    )


def _ink(content: Any) -> int:
    """Characters of a message's content, white space aside."""
    texts = [content] if isinstance(content, str) else [part.get("text") or "" for part in content or []]
    return sum(len(text) - sum(map(text.count, WHITE_SPACE)) for text in texts)


def _fitted(
    examples: Examples, recipe: Recipe, rows: np.ndarray[Any, Any], rejected: dict[int, Rejected], counts: Counter[str]
) -> Examples:
    """Examples with their tails trimmed, those beyond the recipe's length left out; rows counted in the partition."""
    counts["tokens_in"] += len(examples.ids)
    if recipe.trim_tail:
        before, examples = len(examples.ids), trim_tail(examples)
        counts["tokens_trimmed"] += before - len(examples.ids)
    fits = examples.lengths <= recipe.max_length
    for place in np.flatnonzero(~fits):
        counts["tokens_dropped"] += int(examples.lengths[place])
        rejected[int(rows[examples.rows[place]])] = Rejected(
            "too_long",
            f"expected at most {recipe.max_length} tokens, found {examples.lengths[place]}; raise --max-length",
        )
    kept = take(examples, ~np.isin(examples.rows, examples.rows[~fits]))  # a source row is kept or rejected whole
    return Examples(
        **{name: getattr(kept, name) for name in Examples.__slots__ if name != "rows"}, rows=rows[kept.rows]
    )


@functools.lru_cache(maxsize=4)
def masker_for(recipe: str, tokenizer: str, templating: str) -> Masker:
    """The masker of a recipe: one a process, since its traced paths are worth keeping.

    `recipe` and `templating` are JSON. DataError where template or tokenizer are not what the run began with.
    """
    chosen, files = Recipe(**orjson.loads(recipe)), load_tokenizer_files(tokenizer)
    if templating_of(chosen, files) != orjson.loads(templating):
        raise DataError(
            f"{tokenizer}: expected a tokenizer and a chat template that stay as they are while they are used, "
            "found that they changed; run again when nothing writes to them"
        )
    return build_masker(chosen, files)


def templating_of(recipe: Recipe, files: TokenizerFiles) -> dict[str, Any]:
    """SHA-256 of the template, and of every tokenizer file by name."""
    template = resolve_template(recipe.template, files.chat_template)
    return {"template": hashlib.sha256(template.encode()).hexdigest(), "tokenizer": dict(files.digests)}


def build_masker(recipe: Recipe, files: TokenizerFiles) -> Masker:
    """The masker of a recipe and a tokenizer. Raises UsageError where they do not go together."""
    template = resolve_template(recipe.template, files.chat_template)
    encoder = Encoder(files.tokenizer_json)
    if recipe.mask == "generation" and not re.search(r"\{%-?\s*generation\b", template):
        raise UsageError(
            "mask=generation: expected a template with {% generation %} tags, found none; "
            "leave the option out, or give such a template with --template"
        )
    masker = Masker(
        template=template,
        variables={**files.special_tokens, **recipe.template_args},
        date=recipe.date,
        encoder=encoder,
        vocabulary=vocabulary(recipe, files, encoder, template),
        choices=recipe,
    )
    bos = files.special_tokens.get("bos_token")
    for probes in masker.grammar.probes.values():
        if bos and probes[0].text.startswith(bos + bos):
            raise UsageError(f"the template begins every conversation with {bos} twice; mend the template")
    return masker


def vocabulary(recipe: Recipe, files: TokenizerFiles, encoder: Encoder, template: str) -> Vocabulary:
    """Control tokens, tags and stop tokens of a tokenizer under a template."""
    by_id = {token.id: token.content for token in encoder.added}
    known = {token.content for token in encoder.added}
    for token in recipe.stop_tokens:
        if token not in known:
            raise UsageError(
                f"stop_tokens: expected added tokens of {files.name}, found {token!r}; "
                f"it has {', '.join(sorted(t.content for t in encoder.added if t.special))}"
            )
    stops = {by_id[i] for i in files.eos_ids if i in by_id} | set(recipe.stop_tokens)
    return classify(encoder.added, template, frozenset(stops))
