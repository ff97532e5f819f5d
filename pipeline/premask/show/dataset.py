"""From a prepared dataset to what people look at: a pack, or what became of one source row."""

import json
from pathlib import Path

import numpy as np

from premask.encode.encoder import Encoder
from premask.encode.files import TokenizerFiles, load_tokenizer_files
from premask.errors import UsageError
from premask.show.view import PackView, print_pack
from premask.store.reader import Pack, Prepared, open_prepared


def show(
    folder: Path, *, split: str, pack: int | None, source_row: int | None, tokenizer: str | None, color: bool
) -> None:
    """Print one pack of `split` (the first by default), or every example made from `source_row`, whatever its split.

    `tokenizer` stands in for the one that the manifest names, where that is no longer at its place. Raises DataError
    where `folder` holds no finished dataset, UsageError where it has no such split, pack or row, or the tokenizer is
    another one.
    """
    from rich.console import Console

    prepared = open_prepared(folder)
    if source_row is None:
        places = [(_pack(prepared, split, pack or 0), slice(None))]
    else:
        places = [(prepared[split][n], slice(piece, piece + 1)) for split, n, piece in _find(prepared, source_row)]
    encoder = Encoder(_tokenizer(prepared, tokenizer).tokenizer_json)
    console = Console(highlight=False, no_color=None if color else True)
    for found, examples in places:
        print_pack(pack_view(found, examples, encoder), console)


def pack_view(pack: Pack, examples: slice, encoder: Encoder) -> PackView:
    """Some neighbouring examples of a pack, ready to draw."""
    bounds = np.concatenate(([0], np.cumsum(pack.seq_lengths)))
    starts, ends = bounds[:-1][examples], bounds[1:][examples]
    tokens = slice(starts[0], ends[-1])
    return PackView(
        ids=pack.input_ids[tokens],
        labels=pack.labels[tokens],
        seq_lengths=pack.seq_lengths[examples],
        source_rows=pack.source_rows[examples].tolist(),
        token_bytes=lambda token: encoder.spell([token]),
        special_ids={token.id for token in encoder.added if token.special},
    )


def _pack(prepared: Prepared, split: str, number: int) -> Pack:
    if split not in prepared.splits:
        raise UsageError(f"--split {split}: {prepared.path} has the splits {', '.join(prepared)}")
    packs = prepared[split]
    if number >= len(packs):
        raise UsageError(f"--pack {number}: {prepared.path / split} has the packs 0 to {len(packs) - 1}")
    return packs[number]


def _find(prepared: Prepared, row: int) -> list[tuple[str, int, int]]:
    rows = prepared.manifest["rows"]["in"]
    if row >= rows:
        raise UsageError(f"--source-row {row}: {prepared.path} was made from the source rows 0 to {rows - 1}")
    places = prepared.find(row)
    if not places:
        raise UsageError(f"--source-row {row}: no example was made from it: {_rejection(prepared, row)}")
    return places


def _rejection(prepared: Prepared, row: int) -> str:
    """Why a source row was rejected. Rows are global here, and counted within their source in rejected.jsonl."""
    firsts: dict[int, int] = {}
    for part in prepared.manifest["partitions"]:
        firsts.setdefault(part["source"], part["first_row"])
    source, first = max((item for item in firsts.items() if item[1] <= row), key=lambda item: item[0])
    name = prepared.manifest["sources"][source]["name"]
    with (prepared.path / "rejected.jsonl").open(encoding="utf-8") as file:
        for rejected in map(json.loads, file):
            if (rejected["source"], rejected["row"]) == (name, row - first):
                return f"row {row - first} of {name} was rejected ({rejected['reason']}): {rejected['detail']}"
    return f"row {row - first} of {name}, and rejected.jsonl does not say why; see `premask verify`"


def _tokenizer(prepared: Prepared, given: str | None) -> TokenizerFiles:
    """The tokenizer of a dataset; UsageError where it is not the one that made it."""
    files = load_tokenizer_files(given or prepared.manifest["recipe"]["tokenizer"])
    if files.digests["tokenizer.json"] != prepared.manifest["tokenizer"]["tokenizer.json"]:
        raise UsageError(
            f"{files.name}: expected the tokenizer with which {prepared.path} was made, found another one; "
            "name its folder with --tokenizer"
        )
    return files
