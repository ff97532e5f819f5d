"""Train the tiny byte-level BPE tokenizer in `data/tokenizer`, from our own samples and the prose in `prose.txt`.

    python data/make_tokenizer.py

The same inputs give the same bytes. 4,096 ids: 256 bytes, merges, then four special tokens and four that are ordinary
text to a tokenizer but single ids (`<think>`, `</think>`, `<tool_call>`, `</tool_call>`), as Qwen has them. It is small
so that tests and a tiny model are quick; nobody should train on its compression. `prose.txt` is in the public domain.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from premask.render.named import named_template

HERE = Path(__file__).parent
VOCABULARY = 4096
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""GPT-4's pattern (cl100k_base)."""

CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": None,
    "eos_token": "<|im_end|>",
    "pad_token": "<|pad|>",
    "unk_token": None,
    "model_max_length": 2048,
    "clean_up_tokenization_spaces": False,
}


def strings(value: Any) -> Iterator[str]:
    """Every string within a JSON value, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def rows(path: Path) -> Iterator[Any]:
    """The JSON values of a file; a line that is broken on purpose is passed over."""
    raw = path.read_bytes()
    for piece in [raw] if path.suffix == ".json" else raw.splitlines():
        try:
            yield json.loads(piece)
        except ValueError:
            continue


def texts() -> Iterator[str]:
    """The training texts, in an order that depends on file names alone."""
    yield from (HERE / "prose.txt").read_text(encoding="utf-8").split("\n\n")
    for path in sorted((HERE / "samples").rglob("*.json*")):
        for row in rows(path):
            yield from (
                text.encode("utf-8", "ignore").decode() for text in strings(row)
            )  # samples hold lone surrogates


def train() -> Tokenizer:
    """The tokenizer, exactly `VOCABULARY` ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL) - len(TAGS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in TAGS])
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise SystemExit(f"expected {VOCABULARY} ids, found {tokenizer.get_vocab_size()}: add text to prose.txt")
    return tokenizer


def main() -> None:
    """Write `tokenizer.json`, `tokenizer_config.json` and `generation_config.json`."""
    folder = HERE / "tokenizer"
    folder.mkdir(exist_ok=True)
    tokenizer = train()
    (folder / "tokenizer.json").write_text(tokenizer.to_str() + "\n", encoding="utf-8")
    config = CONFIG | {"chat_template": named_template("chatml")}
    ends = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    for name, content in {"tokenizer_config": config, "generation_config": {"eos_token_id": ends}}.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
