"""How fast turns are found by their markers: ours, on ids and on bytes, beside the loop that people use today.

    python tests/bench/search.py [TOKENS]

The text is the repository's samples repeated (or real conversations, where `../shared/data` is there), rendered as
ChatML (markers are control tokens, found among the ids) and as Alpaca (markers are plain text, found among the
bytes). The loop is a restatement of the rule of Unsloth's `train_on_responses_only`: from every response marker to
the next instruction marker, token by token. Ratios count; the figures of one machine do not.
"""

import datetime
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from premask.encode.encoder import Encoder
from premask.mask.controls import classify
from premask.mask.masker import Masker
from premask.mask.search import Haystack, haystack, search
from premask.read import Conversation
from premask.recipe import Recipe
from premask.render.named import named_template

ROOT = Path(__file__).parents[2]
REAL = ROOT / "../shared/data/chat/oasst_en.messages.jsonl"
OURS = ROOT / "data/samples/support.messages.jsonl"


def conversations() -> list[Conversation]:
    """Conversations of plain text."""
    found = []
    for line in (REAL if REAL.exists() else OURS).read_text().splitlines():
        try:
            messages = json.loads(line)["messages"]
        except ValueError:
            continue  # the samples hold a broken row
        if all(isinstance(m.get("content"), str) and m["role"] != "tool" for m in messages):
            found.append(Conversation(messages=messages))
    return found


def batches(template: str, tokens: int) -> tuple[Masker, list[Haystack], np.ndarray]:
    """Two halves of a batch of about `tokens` tokens; and the ids of one of them."""
    encoder = Encoder((ROOT / "data/tokenizer/tokenizer.json").read_bytes())
    source = named_template(template)
    stops = frozenset(("<|im_end|>", "<|endoftext|>"))
    masker = Masker(
        source,
        {"eos_token": "<|endoftext|>"},
        datetime.date(2025, 1, 1),
        encoder,
        classify(encoder.added, source, stops),
        Recipe(sources=["-"], tokenizer="-"),
    )
    texts = [masker.program.render_plain(c) for c in conversations()]
    encoded = encoder.encode(texts)
    times = max(1, tokens // 2 // len(encoded.ids))
    lengths = np.tile(np.diff(encoded.offsets), times)
    half = haystack(
        texts * times,
        np.tile(encoded.ids, times),
        np.concatenate([[0], np.cumsum(lengths)]),
        np.tile(encoded.starts, times),
    )
    return masker, [half, half], half.ids


def unsloth_loop(ids: list[int], response: list[int], instruction: list[int]) -> list[int]:
    """Labels by the rule of the loop that is in use: everything between a response and an instruction marker."""
    labels, i, n = [-100] * len(ids), 0, len(ids)
    while i < n:
        if ids[i] == response[0] and ids[i : i + len(response)] == response:
            j = i + len(response)
            start = j
            while j < n and not (ids[j] == instruction[0] and ids[j : j + len(instruction)] == instruction):
                j += 1
            labels[start:j] = ids[start:j]
            i = j
        i += 1
    return labels


def best(function: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the fastest of some runs."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    """Print a table: tokens a second, and the ratio to the loop."""
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 8_000_000
    print(f"{'markers':<28}{'cores':>6}{'million tokens/s':>18}{'x loop':>9}")
    for template, kind in (("chatml", "control tokens, among ids"), ("alpaca", "plain text, among bytes")):
        masker, halves, ids = batches(template, tokens)
        some = ids[: min(len(ids), 400_000)].tolist()
        header = masker.encoder.encode([masker.grammar.headers[0]]).ids.tolist()
        user = masker.encoder.encode([masker.grammar.openings["user"][0]]).ids.tolist()
        loop = len(some) / best(lambda s=some, h=header, u=user: unsloth_loop(s, h, u), 3)
        markers = masker.grammar.markers
        one = len(ids) / best(lambda h=halves, m=markers: search(h[0], m))
        with ThreadPoolExecutor(2) as pool:
            two = 2 * len(ids) / best(lambda h=halves, m=markers, p=pool: list(p.map(lambda x: search(x, m), h)))
        for cores, speed in ((1, one), (2, two)):
            print(f"{kind:<28}{cores:>6}{speed / 1e6:>18.0f}{speed / loop:>9.0f}")
        print(f"{'  the loop, token by token':<28}{1:>6}{loop / 1e6:>18.1f}{1:>9}")


if __name__ == "__main__":
    main()
