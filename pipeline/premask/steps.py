"""The steps of a preparation that work items carry out: files in, files and a small result out.

Each is a pure function of its arguments and the files they name; who calls it, where, how often and in which order changes
nothing. A step returns `{"written": [[path, size, sha256], ...], "result": {...}}`.
"""

import functools
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
from premask.errors import UsageError
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
from premask.store.plan_file import read_plan
from premask.store.shards import write_shard
from premask.store.stage import read_stage, write_stage

BATCH_ROWS = 512
BATCH_BYTES = 4 * 2**20
"""Rows rendered, encoded and masked at a time: at most so many, or so many bytes of them."""

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
    recipe: dict[str, Any],
    tokenizer: str,
    stage: str,
    rejects: str,
    identity: str,
) -> Step:
    """Phase 1: the rows of one partition to a stage file of examples and a file of rejected rows."""
    chosen = Recipe(**recipe)
    masker = masker_for(orjson.dumps(recipe).decode(), tokenizer)
    counts: Counter[str] = Counter()
    rejected: dict[int, Rejected] = {}
    lines = islice(read_partition(Partition(**{**partition, "path": Path(partition["path"])})), limit)

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
    rows = read_plan(Path(out) / "plan.arrow").shard(split, number)
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
def masker_for(recipe: str, tokenizer: str) -> Masker:
    """The masker of a recipe (as JSON): one a process, since its traced paths are worth keeping."""
    return build_masker(Recipe(**orjson.loads(recipe)), load_tokenizer_files(tokenizer))


def build_masker(recipe: Recipe, files: TokenizerFiles) -> Masker:
    """The masker of a recipe and a tokenizer. Raises UsageError where they do not go together."""
    template = resolve_template(recipe.template, files.chat_template)
    encoder = Encoder(files.tokenizer_json)
    return Masker(
        template=template,
        variables={**files.special_tokens, **recipe.template_args},
        date=recipe.date,
        encoder=encoder,
        vocabulary=vocabulary(recipe, files, encoder, template),
        choices=recipe,
    )


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
