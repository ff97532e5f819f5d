"""What `end_to_end.py` runs: each contestant in a process of its own, imports and loading outside its clock.

    python tests/bench/contestants.py NAME DATA TOKENIZER TEMPLATE PROCESSES OUT

prints `{"seconds": ..., "bytes": ..., ...}` as its last line. `bytes` are those of DATA, whatever is done with them.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    return {"seconds": seconds, "rows": summary["rows"], "rejected": summary["rejected"], "encoder": used["backend"]}


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
    """Parse every row, encode its text, write the result's bytes: each once, each with all processes.

    The texts lie rendered in memory; the caches of the encoders are cold, as those of a preparation are.
    """
    import fastokens
    import orjson

    masker, texts = rendered(data, tokenizer, template)
    spec = masker.encoder.raw.decode()
    with data.open("rb") as file:
        lines = [line.rstrip(b"\n") for line in file]
    bounds = [len(lines) * k // processes for k in range(processes + 1)]
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(processes), context.Queue()
    os.environ["FASTOKENS_BPE_THREADS"] = "1"

    def work(k: int) -> None:
        encoder = fastokens.Tokenizer.from_json_str(spec)
        encoder.encode_batch_flat(["what is made at the first call belongs to the set-up"])
        own_lines, own_texts = lines[bounds[k] : bounds[k + 1]], texts[bounds[k] : bounds[k + 1]]
        spent: dict[str, float] = {}
        barrier.wait()
        began = time.perf_counter()
        for line in own_lines:
            orjson.loads(line)
        spent["parse"] = time.perf_counter() - began
        barrier.wait()
        began = time.perf_counter()
        tokens = [encoder.encode_batch_flat(own_texts[i : i + BATCH])[0] for i in range(0, len(own_texts), BATCH)]
        spent["encode"] = time.perf_counter() - began
        barrier.wait()
        began = time.perf_counter()
        with (out / f"floor-{k}").open("wb", buffering=0) as file:
            for _ in ("ids", "labels", "positions"):
                for part in tokens:
                    file.write(part)
        spent["write"] = time.perf_counter() - began
        queue.put((spent, sum(map(len, tokens)) // 4))

    out.mkdir(parents=True, exist_ok=True)
    workers = [context.Process(target=work, args=(k,)) for k in range(processes)]
    for worker in workers:
        worker.start()
    found = [queue.get() for _ in workers]
    for worker in workers:
        worker.join()
    parts = {name: max(spent[name] for spent, _ in found) for name in ("parse", "encode", "write")}
    return {"seconds": sum(parts.values()), **parts, "tokens": sum(tokens for _, tokens in found)}


def raw_tokenizers(data: Path, tokenizer: Path, template: str, processes: int, out: Path) -> dict[str, Any]:
    """The reference alone: rendered texts to ids, on all cores by its own threads."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    os.environ["RAYON_NUM_THREADS"] = str(processes)
    from tokenizers import Tokenizer

    masker, texts = rendered(data, tokenizer, template)
    encoder = Tokenizer.from_str(masker.encoder.raw.decode())
    began = time.perf_counter()
    for i in range(0, len(texts), BATCH):
        for encoding in encoder.encode_batch_fast(texts[i : i + BATCH], add_special_tokens=False):
            _ = encoding.ids
    return {"seconds": time.perf_counter() - began}


def jinja(data: Path, tokenizer: Path, template: str, processes: int, out: Path) -> dict[str, Any]:
    """Every row rendered by plain sandboxed Jinja, nothing else; one process."""
    from premask.encode.files import load_tokenizer_files
    from premask.recipe import Recipe
    from premask.render.environment import compile_template
    from premask.render.named import resolve_templates

    files = load_tokenizer_files(str(tokenizer))
    date = Recipe(sources=["-"], tokenizer="-").date
    plain = compile_template(resolve_templates(template, files.templates).default, date)
    with data.open("rb") as file:
        rows = [json.loads(line)["messages"] for line in file]
    from premask.read import Conversation
    from premask.render.bounds import begin

    began = time.perf_counter()
    for messages in rows:
        begin(plain, Conversation(messages=messages))
        plain.render(messages=messages, tools=None, documents=None, add_generation_prompt=False, **files.special_tokens)
    return {"seconds": time.perf_counter() - began}


def trl(data: Path, tokenizer: Path, template: str, processes: int, out: Path) -> dict[str, Any]:
    """TRL's SFTTrainer from a loaded dataset to packed ids and masks (loading the JSON is not counted)."""
    import datasets
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    chat = AutoTokenizer.from_pretrained(tokenizer)
    chat.chat_template = Path(template).read_text()
    chat.eos_token = chat.pad_token = "<|im_end|>"  # noqa: S105
    rows = datasets.load_dataset("json", data_files=str(data), split="train", cache_dir=str(out / "cache"))
    config = LlamaConfig(
        vocab_size=len(chat),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config)
    settings = SFTConfig(
        str(out / "trl"),
        assistant_only_loss=True,
        packing=True,
        max_length=4096,
        dataset_num_proc=processes if processes > 1 else None,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
    )
    began = time.perf_counter()
    trainer = SFTTrainer(model=model, args=settings, train_dataset=rows, processing_class=chat)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "packs": len(trainer.train_dataset)}


def masking_loop(data: Path, tokenizer: Path, template: str, processes: int, out: Path) -> dict[str, Any]:
    """Render, tokenize and mask as Unsloth's notebooks do: `apply_chat_template`, the tokenizer, a loop over tokens."""
    import datasets
    from search import unsloth_loop
    from transformers import AutoTokenizer

    datasets.disable_caching()
    datasets.disable_progress_bars()
    chat = AutoTokenizer.from_pretrained(tokenizer)
    chat.chat_template = Path(template).read_text()
    response, instruction = (
        chat(text, add_special_tokens=False).input_ids for text in ("<|im_start|>assistant\n", "<|im_start|>user\n")
    )
    rows = datasets.load_dataset("json", data_files=str(data), split="train", cache_dir=str(out / "cache"))

    def render(batch: dict[str, Any]) -> dict[str, Any]:
        return {"text": [chat.apply_chat_template(m, tokenize=False) for m in batch["messages"]]}

    def tokenize(batch: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": chat(batch["text"], add_special_tokens=False).input_ids}

    def mask(batch: dict[str, Any]) -> dict[str, Any]:
        return {"labels": [unsloth_loop(ids, response, instruction) for ids in batch["input_ids"]]}

    began = time.perf_counter()
    for step in (render, tokenize, mask):
        rows = rows.map(step, batched=True, num_proc=processes if processes > 1 else None)
    return {"seconds": time.perf_counter() - began}


def main() -> None:
    """Run the contestant that the command line names."""
    name, data, tokenizer, template, processes, out = sys.argv[1:]
    given = (Path(data), Path(tokenizer), template, int(processes), Path(out))
    if name.startswith("premask:"):
        result = premask(*given, name.partition(":")[2])
    else:
        known = (floor, raw_tokenizers, jinja, trl, masking_loop)
        result = {each.__name__: each for each in known}[name](*given)
    print(json.dumps({**result, "bytes": Path(data).stat().st_size}))


if __name__ == "__main__":
    main()
