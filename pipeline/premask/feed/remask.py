"""`premask remask`: labels for a dataset that is tokenized already, from its ids alone.

In: a folder of Hugging Face `datasets` (`save_to_disk`), or Parquet files. Out: the same files with a column `labels`
in the place of theirs, in a folder that appears when all of it is written. One batch of rows is in memory at a time.
"""

import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from premask.encode.files import load_tokenizer_files
from premask.errors import DataError, UsageError
from premask.feed.markers import Mask, Parts, known_from_files, masking_for, sampled_masking
from premask.feed.rows import Masking, NoResponse, mask_rows, named, with_labels
from premask.render.named import resolve_templates
from premask.store.atomic import TEMPORARY_SUFFIX, sync_folder, write_json

BATCH_ROWS = 1000


@dataclass(slots=True)
class Counts:
    """What became of a dataset."""

    rows: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    quoted_headers: int = 0
    """Headers that were taken for quotations."""
    left_out: int = 0
    """Rows with nothing to train."""


def masking_of(
    tokenizer: str,
    template: str | None,
    parts: Parts | None,
    *,
    mask: Mask,
    last_response_only: bool,
) -> Masking:
    """How rows that were made with the tokenizer in a folder are masked; `template` takes the place of its own."""
    files = load_tokenizer_files(tokenizer)
    source = resolve_templates(template, files.templates).default if template else files.chat_template
    if mask == "sampled":
        return sampled_masking(known_from_files(files, source), parts, last_response_only=last_response_only)
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(str(files.folder))
    loaded.chat_template = source
    return masking_for(
        loaded, parts, mask=mask, force_match=True, last_response_only=last_response_only, mask_out_tokens=None
    )


def remask(dataset: Path, out: Path, masking: Masking, no_response: NoResponse) -> Counts:
    """Write `dataset` to the new folder `out` with labels, and say what became of it.

    Raises UsageError where `dataset` holds no files that can be read or `out` exists, and DataError, with file and
    rows, where rows do not fit together or have nothing to train (`no_response="drop"` leaves those out).
    """
    files = _files(dataset)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: expected a folder that does not exist yet, or is empty. Remove it or name another.")
    run = _Run(masking, no_response)
    root = dataset if dataset.is_dir() else dataset.parent
    with _appearing(out) as folder:
        for file in files:
            target = folder / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                if file.suffix == ".parquet":
                    run.parquet(file, target)
                elif file.suffix == ".arrow":
                    run.arrow(file, target)
            except (DataError, pa.ArrowException) as error:
                raise DataError(f"{file}: {error}") from None
        if not run.counts.rows:
            raise DataError(f"{dataset}: expected rows, found none.")
        if run.counts.rows == run.counts.left_out:
            raise DataError(f"{dataset}: no row has anything to train. Check --response-part, or the chat template.")
        if run.empty:
            raise DataError(
                "\n".join(f"{name}: {named(rows)} would train on nothing." for name, rows in run.empty.items())
                + "\nNo response was found there: it may be cut off, or not be what the chat template writes. Remove "
                "these rows, or leave them out with --no-response drop."
            )
        for file in files:
            if file.suffix == ".json":
                _describe(file, folder / file.relative_to(root), run.counts)
    return run.counts


def told(counts: Counts) -> Iterator[str]:
    """The counts in words."""
    share = counts.trained_tokens / max(counts.tokens, 1)
    rows = counts.rows - counts.left_out
    yield f"{rows:,} rows, {counts.tokens:,} tokens, {counts.trained_tokens:,} trained ({share:.1%})"
    if counts.left_out:
        yield f"{counts.left_out:,} rows left out: no response was found in them"
    if counts.quoted_headers:
        yield (
            f"{counts.quoted_headers:,} headers of the assistant stand where the chat template writes none: taken for "
            "quotations, no turn begins there"
        )


def _files(dataset: Path) -> list[Path]:
    """The files of a dataset: Parquet, or Arrow with the descriptions that `datasets` keeps."""
    if dataset.is_file() and dataset.suffix == ".parquet":
        return [dataset]
    states = sorted(dataset.rglob("state.json"))
    if states:
        described = [file for state in states for file in (state, state.with_name("dataset_info.json"))]
        arrow = [
            state.parent / data["filename"]
            for state in states
            for data in json.loads(state.read_bytes())["_data_files"]
        ]
        return [file for file in [dataset / "dataset_dict.json", *described, *arrow] if file.exists()]
    found = sorted(dataset.rglob("*.parquet"))
    if not found:
        raise UsageError(f"{dataset}: expected a folder written by `save_to_disk`, or Parquet files; found neither.")
    return found


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder that becomes `out` when the block ends, and leaves nothing when it raises."""
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync_folder(temporary)
        temporary.replace(out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@dataclass(slots=True)
class _Run:
    """The files of a dataset, one after the other."""

    masking: Masking
    no_response: NoResponse
    counts: Counts = field(default_factory=Counts)
    empty: dict[str, list[int]] = field(default_factory=dict)
    """By file, the rows with nothing to train that are an error."""

    def arrow(self, file: Path, target: Path) -> None:
        """Mask a file of `datasets`."""
        with pa.memory_map(str(file)) as source, pa.ipc.open_stream(source) as reader:
            schema = _with_labels(reader.schema)
            with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
                tables = (pa.Table.from_batches([batch]) for batch in reader)
                for table in self._masked(file, tables):
                    writer.write_table(table.cast(schema))

    def parquet(self, file: Path, target: Path) -> None:
        """Mask a Parquet file."""
        with pq.ParquetFile(file) as source:
            schema = _with_labels(source.schema_arrow)
            tables = (pa.Table.from_batches([batch]) for batch in source.iter_batches(BATCH_ROWS))
            with pq.ParquetWriter(target, schema) as writer:
                for table in self._masked(file, tables):
                    writer.write_table(table.cast(schema))

    def _masked(self, file: Path, tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
        first = 0
        for table in (whole.slice(at, BATCH_ROWS) for whole in tables for at in range(0, len(whole), BATCH_ROWS)):
            masked = mask_rows(table, self.masking, first)
            empty = np.flatnonzero(~masked.trained)
            if len(empty) and self.no_response == "error":
                self.empty.setdefault(str(file), []).extend((first + empty).tolist())
            labelled = with_labels(table, masked)
            yield labelled.filter(pa.array(masked.trained)) if len(empty) else labelled
            self.counts.rows += len(masked.tokens)
            self.counts.tokens += int(masked.tokens.sum())
            self.counts.trained_tokens += masked.trained_tokens
            self.counts.quoted_headers += int(masked.quoted.sum())
            self.counts.left_out += len(empty)
            first += len(masked.tokens)


def _with_labels(schema: pa.Schema) -> pa.Schema:
    """The schema of the rows with their labels, and what `datasets` notes in it."""
    if "input_ids" not in schema.names:
        raise DataError(f"expected a column input_ids, found {', '.join(schema.names)}. Tokenize the rows first.")
    if "labels" not in schema.names:
        schema = schema.append(pa.field("labels", schema.field("input_ids").type))
    notes = schema.metadata or {}
    if b"huggingface" in notes:
        noted = json.loads(notes[b"huggingface"])
        _add_feature(noted.get("info", {}))
        schema = schema.with_metadata({**notes, b"huggingface": json.dumps(noted).encode()})
    return schema


def _add_feature(info: dict[str, Any]) -> None:
    features = info.get("features") or {}
    if "input_ids" in features:
        features.setdefault("labels", features["input_ids"])


def _describe(file: Path, target: Path, counts: Counts) -> None:
    """Write one of the descriptions of `datasets` for the masked dataset."""
    described = json.loads(file.read_bytes())
    if file.name == "dataset_info.json":
        _add_feature(described)
        for name in ("splits", "dataset_size", "size_in_bytes", "download_size", "download_checksums"):
            described.pop(name, None)  # of the dataset as it was
    elif file.name == "state.json":
        columns = described.get("_format_columns")
        if columns and "labels" not in columns:
            described["_format_columns"] = [*columns, "labels"]
        # By it `datasets` names its caches.
        mark = repr((described.get("_fingerprint"), counts)).encode()
        described["_fingerprint"] = hashlib.sha256(mark).hexdigest()[:16]
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, described, sort_keys=False)
