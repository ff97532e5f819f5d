"""Data for the benchmarks: real conversations made distinct, and a tokenizer that has the templates' control tokens.

The rows of `../shared/data` (of the repository's samples where that is absent) are written again and again as
`messages`. In every copy but the first each seventh word or so gives way to another word of the corpus, and one in a
hundred to a new word spliced from two, so that no sentence of length repeats and the encoders' caches meet new words at
about the rate of real text.
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from premask.read import convert, detect, open_sources, parse, read_source

ROOT = Path(__file__).parents[2]
SHARED = ROOT / "../shared/data"
WORD = re.compile(r"[^\W\d_]{3,}")

CONTROL_TOKENS = (
    *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
)
"""What the Llama-3 and Qwen3 templates write beyond ChatML."""


def write_corpus(path: Path, size: int, *, tools: bool = False, seed: int = 0) -> int:
    """Write at least `size` bytes of conversations as JSON lines, unless they are there; returns the number of rows.

    With `tools` those of the folder of tool calls, else those of plain chats.
    """
    stated = path.with_suffix(".rows")
    if path.exists() and path.stat().st_size >= size and stated.exists():
        return int(stated.read_text())
    rows = list(_originals(tools))
    words = [word for row in rows for m in row["messages"] for word in WORD.findall(_text(m))]
    chance = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    count = written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            chance.shuffle(rows)
            for row in rows:
                line = json.dumps(_varied(row, words, chance) if count >= len(rows) else row, ensure_ascii=False)
                written += file.write(line + "\n")
                count += 1
                if written >= size:
                    break
    stated.write_text(str(count))
    return count


def write_tokenizer(folder: Path) -> Path:
    """Write a real tokenizer (ours, where `../shared/data` is absent) with the control tokens of the templates."""
    source = SHARED / "tokenizers/dolma2"
    source = source if source.exists() else ROOT / "data/tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    spec = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    known = {token["content"] for token in spec["added_tokens"]}
    largest = max(*(token["id"] for token in spec["added_tokens"]), *spec["model"]["vocab"].values())
    new = [content for content in CONTROL_TOKENS if content not in known]
    for number, content in enumerate(new, largest + 1):
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        spec["added_tokens"].append({"id": number, "content": content, **flags, "special": content.startswith("<|")})
    (folder / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    config = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    for decoder in [config.get("added_tokens_decoder")]:
        if decoder is not None:
            decoder.update({str(t["id"]): {k: v for k, v in t.items() if k != "id"} for t in spec["added_tokens"]})
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    return folder


def _originals(tools: bool) -> Iterator[dict[str, Any]]:
    folder = SHARED / ("tools" if tools else "chat")
    files = sorted(folder.iterdir()) if folder.exists() else sorted((ROOT / "data/samples").iterdir())
    for source in open_sources([str(file) for file in files]):
        rows = [row for raw in read_source(source) if isinstance(row := parse(raw), dict)]
        form = detect(rows[:100], source.name)
        for row in rows:
            found = convert(form, row)
            messages = getattr(found, "messages", None)
            if messages is None or (not tools and not all(_plain(m) for m in messages)):
                continue
            yield {"messages": messages} if found.tools is None else {"messages": messages, "tools": found.tools}


def _plain(message: dict[str, Any]) -> bool:
    return message.keys() == {"role", "content"} and isinstance(message["content"], str)


def _text(message: dict[str, Any]) -> str:
    return message["content"] if isinstance(message["content"], str) else ""


def _varied(row: dict[str, Any], words: list[str], chance: random.Random) -> dict[str, Any]:
    def other(match: re.Match[str]) -> str:
        dice = chance.random()
        if dice < 0.14:
            return chance.choice(words)
        if dice < 0.15:
            first, second = chance.choice(words), chance.choice(words)
            return first[: len(first) // 2 + 1] + second[len(second) // 2 :].lower()
        return match.group()

    messages = [{**m, "content": WORD.sub(other, m["content"])} if _text(m) else m for m in row["messages"]]
    return {**row, "messages": messages}
