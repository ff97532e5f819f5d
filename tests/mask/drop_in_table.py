"""Writes data/drop_in.md: where `mask="sampled"` and `mask="unsloth"` differ on real conversations, and which is right.

    python tests/mask/drop_in_table.py        (make templates)

Rows are rendered and encoded by `prepare`, which knows from whom every byte comes; what it trains is right. Both masks
see the ids alone. The conversations are those of `../shared/data`, at most 100 of each source, and our own samples.
"""

import contextlib
import importlib.util
import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from premask.errors import UsageError
from premask.feed.markers import KnownTokenizer, markers_like_unsloth, sampled_markers
from premask.mask.masker import Masker
from premask.mask.responses import mask_responses
from premask.read import Conversation, Rejected, convert, detect, parse

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "data/drop_in.md"
SOURCES = sorted(
    p for d in ("../shared/data/chat", "../shared/data/tools", "data/samples") for p in (ROOT / d).glob("*")
)
MOST = 100

TEMPLATES = (
    "llama3_1", "qwen2_5", "qwen3", "qwen3_instruct_2507", "gemma3", "phi3", "gptoss", "deepseekv3", "lfm2_v2",
    "glm4moe", "premask:chatml", "premask:llama-3", "premask:alpaca", "premask:zephyr",
)  # fmt: skip

HEAD = """\
# The two masks of the drop-in

Where `train_on_responses_only(..., mask="sampled")` and `mask="unsloth"` (the labels of Unsloth's function, token for
token) differ from what `premask prepare` trains, which knows from whom every byte of a row comes. Both see the ids
alone. {rows:,} real conversations, {tokens:,} tokens over all templates; no markers were given by hand. A row is
right if all of its labels are those of `prepare`; the last two columns count the rows that only one of the two gets
right. Written by `make templates` (`tests/mask/drop_in_table.py`).

| template | rows | tokens trained | rows right, sampled | rows right, unsloth | only sampled | only unsloth |
|---|---|---|---|---|---|---|
"""

CLASSES = """
## By class

Trained though the model never has to emit it (**+**), or not trained though it has to (**−**): tokens (rows).

| | sampled | unsloth | templates |
|---|---|---|---|
"""

TAIL = """
What `sampled` gets wrong, ids cannot tell: a text that spells a whole border between two turns, thinking that an answer
shares with the generation prompt, and what markers alone cannot follow (`premask markers` names it: tools in deepseekv3
and gptoss). `prepare` sees the texts, and masks those too.
"""


def table_module() -> Any:
    spec = importlib.util.spec_from_file_location("table", Path(__file__).with_name("table.py"))
    assert spec is not None and spec.loader is not None
    module = sys.modules.setdefault("table", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


def conversations() -> Iterator[Conversation]:
    """At most `MOST` conversations of each source, spread over it."""
    for path in SOURCES:
        raw = path.read_bytes()
        lines = [orjson.dumps(row) for row in orjson.loads(raw)] if path.suffix == ".json" else raw.splitlines()
        rows = [row for line in lines if line.strip() and not isinstance(row := parse(line), Rejected)]
        form = detect(rows[:100], path.name)
        found = [c for row in rows if isinstance(c := convert(form, row), Conversation)]
        some = np.unique(np.linspace(0, len(found) - 1, MOST).astype(int))
        yield from (replace(found[i], weights=None) for i in some)  # what a row states of its turns, no ids can tell


def masker_of(name: str) -> Masker:
    """The masker of a template, for whose rows control tokens in a text are what they spell, as for every trainer."""
    made = table_module().masker(name)
    made.choices = made.choices.model_copy(update={"control_tokens": "allow"})
    return made


def tokenizer_of(name: str) -> tuple[Any, KnownTokenizer]:
    """A template's tokenizer for both masks."""
    families = table_module().families()
    raw, named = families.family_tokenizer(name), families.variables(name)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(raw.decode()), **named)
    tokenizer.chat_template = families.source(name)
    stops = [families.encoder(name).id_of(stop) for stop in families.vocabulary(name).stops]
    known = KnownTokenizer(
        tokenizer_json=raw, chat_template=families.source(name), special_tokens=named, stops=[s for s in stops if s]
    )
    return tokenizer, known


def classes(name: str, masker: Masker, ids: Any, right: Any, found: Any) -> Iterator[tuple[str, int]]:
    """Every run of tokens of a row that is labelled wrongly: its class and size."""
    headers = [h.encode() for h in masker.grammar.headers]
    openings = [o.strip().encode() for texts in masker.grammar.openings.values() for o in texts]
    state = np.where((right < 0) & (found >= 0), 1, np.where((right >= 0) & (found < 0), -1, 0))
    place = 0
    for kind, group in itertools.groupby(state.tolist()):
        size = len(list(group))
        text = masker.encoder.spell(ids[place : place + size].tolist())
        before = masker.encoder.spell(ids[max(place - 12, 0) : place].tolist())
        if kind == 1 and not text.strip():
            yield "+ white space behind the terminator", size
        elif kind == 1 and any(opening and opening in text for opening in openings):
            yield "+ another role's turn (tool, system)", size
        elif kind == 1 and any(before.endswith(h) for h in headers):
            yield "+ what the generation prompt writes before the answer", size
        elif kind == 1:
            yield "+ other text of the template or of another role", size
        elif kind == -1 and place and right[place - 1] < 0 and (place + size == len(ids) or right[place + size] < 0):
            broken = before.rstrip(b"\n") != before or text.startswith(b"\n")
            yield "− a whole turn" + (", which begins with a line break" if broken and text[:1] in b"\n" else ""), size
        elif kind == -1:
            yield "− a part of a turn, or its terminator", size
        place += size


def table() -> str:
    """The whole file."""
    every = list(conversations())
    lines, total = [], 0
    found: dict[str, dict[str, list[int]]] = {}
    where: dict[str, Counter[str]] = {}
    for name in TEMPLATES:
        masker, (tokenizer, known) = masker_of(name), tokenizer_of(name)
        masked = masker.mask(every).examples
        right = np.full(len(masked.ids), -100, np.int32)
        firsts = masked.offsets[:-1].repeat(np.diff(masked.span_offsets))
        for (start, end), first in zip(masked.spans.tolist(), firsts.tolist(), strict=True):
            right[first + start : first + end] = masked.ids[first + start : first + end]
        both: dict[str, Any] = {}
        good = {"sampled": "refused: no usable markers", "unsloth": "refused: no markers found"}
        with contextlib.suppress(UsageError):
            both["sampled"] = sampled_markers(known, None)[0]
        with contextlib.suppress(UsageError):
            both["unsloth"] = markers_like_unsloth(tokenizer, None, force_match=True)
        wrong = {mask: set(range(len(masked))) for mask in good}
        for mask, markers in both.items():
            labels, _ = mask_responses(masked.ids, masked.offsets, markers)
            rows = [slice(a, b) for a, b in itertools.pairwise(masked.offsets.tolist())]
            wrong[mask] = {n for n, row in enumerate(rows) if not np.array_equal(labels[row], right[row])}
            good[mask] = f"{1 - len(wrong[mask]) / len(rows):.2%}"
            for row in (rows[n] for n in sorted(wrong[mask])):
                per_row: Counter[str] = Counter()
                for kind, size in classes(name, masker, masked.ids[row], right[row], labels[row]):
                    per_row[kind] += size
                for kind, size in per_row.items():
                    sizes = found.setdefault(kind, {"sampled": [0, 0], "unsloth": [0, 0]})[mask]
                    sizes[0], sizes[1] = sizes[0] + size, sizes[1] + 1
                    where.setdefault(kind, Counter())[name] += size
        total += len(masked.ids)
        trained = (right != -100).sum()
        only = [len(wrong["unsloth"] - wrong["sampled"]), len(wrong["sampled"] - wrong["unsloth"])]
        cells = [name, f"{len(masked):,}", f"{trained:,}", *good.values(), *map(str, only)]
        lines.append(f"| {' | '.join(cells)} |\n")
    rows = [
        f"| {kind} | {told(sizes['sampled'])} | {told(sizes['unsloth'])} | "
        f"{', '.join(name for name, _ in where[kind].most_common(4))} |\n"
        for kind, sizes in sorted(found.items())
    ]
    return HEAD.format(rows=len(every), tokens=total) + "".join(lines) + CLASSES + "".join(rows) + TAIL


def told(sizes: list[int]) -> str:
    return f"{sizes[0]:,} ({sizes[1]:,})" if sizes[0] else "none"


if __name__ == "__main__":
    TABLE.write_text(table())
