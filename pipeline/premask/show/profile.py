"""Where the time of a preparation went, as its run.json has it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from premask.store.manifest import read_manifest
from premask.store.sealed import unseal

NOTES = {
    "set-up": "template traced and probed, tokenizer loaded",
    "read": "lines of the sources",
    "parse": "JSON to conversations, validated",
    "render": "conversations to texts, with their origin",
    "encode": "texts to ids, and the bytes of every id",
    "mask": "control tokens, proof, spans, lengths, hashes",
    "write": "stage files",
    "shards": "packs gathered, written, flushed",
}
"""The stages in the order of the data."""


def profile_lines(folder: Path) -> Iterator[str]:
    """What to print of the dataset in `folder`: phases on the wall, then stages, seconds of all workers together."""
    manifest = read_manifest(folder)
    how: dict[str, Any] = unseal((folder / "run.json").read_bytes())
    size = sum(source["size"] for source in manifest["sources"])
    tokens = sum(account["tokens_in"] for account in manifest["accounts"])
    yield f"{'phase':<18}{'seconds':>9}   on the wall, {how['workers']} workers"
    for phase, seconds in [*how["phases"].items(), ("all", how["seconds"])]:
        yield f"{phase:<18}{seconds:>9.2f}"
    yield f"{'stage':<18}{'seconds':>9}{'share':>8}{'MB/s':>9}{'tokens/s':>13}   of all workers together"
    whole = sum(how["stages"].values())
    for stage in [*NOTES, *sorted(set(how["stages"]) - set(NOTES))]:
        seconds = how["stages"].get(stage, 0.0)
        if seconds:
            speeds = f"{size / seconds / 1e6:>9,.0f}{tokens / seconds:>13,.0f}"
            yield f"{stage:<18}{seconds:>9.2f}{seconds / whole:>8.1%}{speeds}   {NOTES.get(stage, '')}".rstrip()
    encoder = how["encoder"]
    audited = f"{encoder['rows_audited']:,} rows audited"
    yield f"ids by {encoder['backend']} {encoder['version']} ({encoder['reason']}), {audited}"
