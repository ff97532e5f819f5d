"""Draws data/mask.svg: two of our conversations as `premask view` shows them, trained tokens in colour.

Run by `make picture`; equal inputs, equal bytes. A test compares the file with what this draws.
"""

import tempfile
from pathlib import Path

import numpy as np

import premask
from premask.encode.encoder import Encoder
from premask.show.dataset import pack_view
from premask.show.view import export_svg
from premask.store.reader import Pack

DATA = Path(__file__).parent
ROWS = [10, 15]
"""A user who forges control tokens, and a chat of three turns."""


def draw() -> str:
    """The picture."""
    recipe = premask.Recipe(
        sources=[str(DATA / "samples/support.messages.jsonl")], tokenizer=str(DATA / "tokenizer"), pack="none"
    )
    with tempfile.TemporaryDirectory() as folder:
        premask.prepare(recipe, folder)
        prepared = premask.open(folder)
        packs = [prepared[split][number] for row in ROWS for split, number, _ in prepared.find(row)]
        encoder = Encoder((DATA / "tokenizer/tokenizer.json").read_bytes())
        return export_svg(pack_view(_together(packs), slice(None), encoder), "premask view", width=96)


def _together(packs: list[Pack]) -> Pack:
    columns = ("input_ids", "labels", "position_ids", "seq_lengths", "source_rows")
    joined = {name: np.concatenate([getattr(pack, name) for pack in packs]) for name in columns}
    return Pack(**joined, source_turns=None, loss_weights=None)


if __name__ == "__main__":
    (DATA / "mask.svg").write_text(draw(), encoding="utf-8")
