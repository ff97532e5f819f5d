"""What `end_to_end.py` runs: each contestant in a process of its own, imports and loading outside its clock.

    python tests/bench/contestants.py NAME DATA TOKENIZER TEMPLATE PROCESSES OUT

prints `{"seconds": ..., "bytes": ..., ...}` as its last line. `bytes` are those of DATA, whatever is done with them.
Here stand premask, its floor and single stages; `peers.py` has the preparations of others. What they all count
(tokens, the sum of the ids, a digest of the texts) must agree: `test_contestants.py` compares it.
"""

import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import peers

BATCH = 512


def premask(data: Path, tokenizer: Path, template: str, processes: int, out: Path, encoder: str) -> dict[str, Any]:
    """The whole of `premask prepare`, JSON lines to shards."""
    from premask.prepare import prepare
    from premask.recipe import Recipe

    recipe = Recipe(sources=[str(data)], tokenizer=str(tokenizer), template=template)
    began = time.perf_counter()
    summary = prepare(recipe, out, workers=processes, fresh=True, encoder=encoder)
    seconds = time.perf_counter() - began
    used = json.loads((out / "run.json").read_text())["encoder"]
    counted = {"rows": summary["rows"], "tokens": summary["tokens"]["in"]}
    counted["supervised"] = summary["splits"]["train"]["supervised"]
    return {"seconds": seconds, **counted, "rejected": summary["rejected"], "encoder": used["backend"]}


def rendered(data: Path, tokenizer: Path, template: str) -> tuple[Any, list[str]]:
    """The masker, and every row of `data` rendered."""
    from premask.encode.files import load_tokenizer_files
    from premask.maskers import build_masker
    from premask.read import convert, parse
    from premask.recipe import Recipe
    from premask.render.forms import adapt

    recipe = Recipe(sources=[str(data)], tokenizer=str(tokenizer), template=template)
    masker = build_masker(recipe, load_tokenizer_files(str(tokenizer)))
    with data.open("rb") as file:
        rows = [convert("messages", parse(line)) for line in file]
    return masker, [t for i in range(0, len(rows), BATCH) for t in _texts(masker, rows[i : i + BATCH], adapt)]


def _texts(masker: Any, rows: list[Any], adapt: Callable[..., Any]) -> list[str]:
    return masker.program.render([adapt(row, masker.grammar.forms) for row in rows]).texts


def floor(data: Path, tokenizer: Path, template: str, processes: int, out: Path) -> dict[str, Any]:
    """Parse every row, encode its text, write the result's bytes: each once, each with all processes."""
    return in_turn(("parse", "encode", "write"), data, tokenizer, template, processes, out)


def fast_encoder(data: Path, tokenizer: Path, template: str, processes: int, out: Path) -> dict[str, Any]:
    """fastokens alone: rendered texts to ids."""
    return in_turn(("encode",), data, tokenizer, template, processes, out)


def json_alone(data: Path, tokenizer: Path, template: str, processes: int, out: Path) -> dict[str, Any]:
    """orjson alone: lines to Python's values."""
    return in_turn(("parse",), data, tokenizer, template, processes, out)


class Share:
    """What one process does of the floor, step by step."""

    def __init__(self, lines: list[bytes], texts: list[str], spec: str, written: Path) -> None:
        self.lines, self.texts, self.written = lines, texts, written
        self.rows = 0
        self.ids: list[bytes] = []
        """Of every batch the ids, 32 bits each."""
        if spec:
            import fastokens

            self.encoder = fastokens.Tokenizer.from_json_str(spec)
            self.encoder.encode_batch_flat(["what is made at the first call belongs to the set-up"])

    def parse(self) -> None:
        for line in self.lines:
            orjson.loads(line)
            self.rows += 1

    def encode(self) -> None:
        starts = range(0, len(self.texts), BATCH)
        self.ids = [self.encoder.encode_batch_flat(self.texts[i : i + BATCH])[0] for i in starts]

    def warm(self) -> None:
        """Write once, unmeasured: memory that a virtual machine has not used for a while takes ten times as long."""
        self.write()
        self.written.unlink()

    def write(self) -> None:
        with self.written.open("wb", buffering=0) as file:
            for _ in ("ids", "labels", "positions"):
                for part in self.ids:
                    file.write(part)


def in_turn(
    names: tuple[str, ...], data: Path, tokenizer: Path, template: str, processes: int, out: Path
) -> dict[str, Any]:
    """Those steps of the floor, one after the other, each with all processes, which wait for each other in between.

    The texts lie rendered in memory; the caches of the encoders are cold, as those of a preparation are.
    """
    masker, texts = rendered(data, tokenizer, template) if "encode" in names else (None, [])
    spec = masker.encoder.raw.decode() if masker else ""
    with data.open("rb") as file:
        lines = [line.rstrip(b"\n") for line in file]
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(processes), context.Queue()
    os.environ["FASTOKENS_BPE_THREADS"] = "1"
    out.mkdir(parents=True, exist_ok=True)

    def work(k: int) -> None:
        first, last = len(lines) * k // processes, len(lines) * (k + 1) // processes
        share = Share(lines[first:last], texts[first:last], spec, out / f"written-{k}")
        spent: dict[str, float] = {}
        for name in names:
            if name == "write":
                share.warm()
            barrier.wait()
            began = time.perf_counter()
            getattr(share, name)()
            spent[name] = time.perf_counter() - began
        queue.put((spent, share.rows, counted(np.frombuffer(part, np.uint32) for part in share.ids)))

    workers = [context.Process(target=work, args=(k,)) for k in range(processes)]
    for worker in workers:
        worker.start()
    found = [queue.get() for _ in workers]
    for worker in workers:
        worker.join()
    parts = {name: max(spent[name] for spent, _, _ in found) for name in names}
    sums = {key: sum(each[key] for _, _, each in found) for key in ("tokens", "ids")} if "encode" in names else {}
    rows = {"rows": sum(rows for _, rows, _ in found)} if "parse" in names else {}
    return {"seconds": sum(parts.values()), **parts, **rows, **sums}


def counted(batches: Iterable[Any]) -> dict[str, int]:
    """How many tokens batches of ids hold, and the sum of the ids: to see that all encoders give the same."""
    tokens = ids = 0
    for batch in batches:
        tokens, ids = tokens + len(batch), ids + int(np.sum(batch, dtype=np.int64))
    return {"tokens": tokens, "ids": ids}


def digest(texts: Iterable[str]) -> str:
    """SHA-256 of texts, a NUL behind each."""
    made = hashlib.sha256()
    for text in texts:
        made.update(text.encode() + b"\0")
    return made.hexdigest()


def raw_tokenizers(data: Path, tokenizer: Path, template: str, processes: int, out: Path) -> dict[str, Any]:
    """The reference alone: rendered texts to ids, on all cores by its own threads."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.environ["RAYON_NUM_THREADS"] = str(processes)
    from tokenizers import Tokenizer

    masker, texts = rendered(data, tokenizer, template)
    encoder = Tokenizer.from_str(masker.encoder.raw.decode())
    found: list[list[int]] = []
    began = time.perf_counter()
    for i in range(0, len(texts), BATCH):
        found += [each.ids for each in encoder.encode_batch_fast(texts[i : i + BATCH], add_special_tokens=False)]
    seconds = time.perf_counter() - began
    return {"seconds": seconds, **counted(found), "texts": digest(texts)}


def jinja(data: Path, tokenizer: Path, template: str, processes: int, out: Path) -> dict[str, Any]:
    """Every row rendered as transformers compiles and renders templates, nothing else; one process."""
    from transformers import AutoTokenizer
    from transformers.utils.chat_template_utils import _compile_jinja_template

    from premask.render.named import resolve_templates

    variables = AutoTokenizer.from_pretrained(tokenizer).special_tokens_map
    plain = _compile_jinja_template(resolve_templates(template, {}).default)
    with data.open("rb") as file:
        rows = [json.loads(line)["messages"] for line in file]
    given = {"tools": None, "documents": None, "add_generation_prompt": False, **variables}
    began = time.perf_counter()
    texts = [plain.render(messages=messages, **given) for messages in rows]
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "rows": len(rows), "texts": digest(texts)}


def main() -> None:
    """Run the contestant that the command line names."""
    name, data, tokenizer, template, processes, out = sys.argv[1:]
    given = (Path(data), Path(tokenizer), template, int(processes), Path(out))
    if name.startswith("premask:"):
        result = premask(*given, name.partition(":")[2])
    else:
        known = (floor, fast_encoder, json_alone, raw_tokenizers, jinja, peers.trl, peers.masking_loop, peers.axolotl)
        result = {each.__name__: each for each in known}[name](*given)
    print(json.dumps({**result, "bytes": Path(data).stat().st_size}))


if __name__ == "__main__":
    main()
