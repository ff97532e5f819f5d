"""From a prepared dataset to what people look at: a pack, or what became of one source row."""

from pathlib import Path

import numpy as np

from premask.encode.encoder import Encoder
from premask.encode.files import load_tokenizer_files
from premask.errors import UsageError
from premask.show.view import PackView, print_pack
from premask.store.reader import Pack, Prepared, open_prepared


def show(
    folder: Path, *, split: str, pack: int | None, source_row: int | None, tokenizer: str | None, color: bool
) -> None:
    """Print one pack of `split` (the first by default), or every example made from `source_row`, whatever its split.

    `tokenizer` stands in for the one that the manifest names, where that is no longer at its place. Raises DataError
    where `folder` holds no finished dataset, UsageError where it has no such split, pack or row.
    """
    from rich.console import Console

    prepared = open_prepared(folder)
    if source_row is None:
        places = [(_pack(prepared, split, pack or 0), slice(None))]
    else:
        places = [(prepared[split][n], slice(piece, piece + 1)) for split, n, piece in _find(prepared, source_row)]
    files = load_tokenizer_files(tokenizer or prepared.manifest["recipe"]["tokenizer"])
    encoder = Encoder(files.tokenizer_json)
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
    places = prepared.find(row)
    if not places:
        raise UsageError(
            f"--source-row {row}: no example in {prepared.path} was made from it; "
            f"if there is such a row, {prepared.path / 'rejected.jsonl'} says why it was rejected"
        )
    return places
