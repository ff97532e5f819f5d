"""Real conversations end to end, compared label by label with an oracle that shares no code with premask.

The oracle reads rows by plain `json`, writes ChatML by hand, asks `tokenizers` for offsets, and decides about every
token in a loop. The data is not part of the project: without it these tests are skipped.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

import premask
from premask.cli import run
from premask.read import REASONS

DATA = Path(__file__).parents[2] / "shared/data"
CHAT = DATA / "chat"
DOLMA = DATA / "tokenizers/dolma2"
ACCEPTED = ("oasst_en.messages.jsonl", "taskmaster4.sharegpt.jsonl", "gsm8k.prompt_completion.jsonl")
ROLES = {"human": "user", "gpt": "assistant"}
MASKING_REASONS = {"not_rendered", "template_error", "mask_unproven", "nothing_to_train", "control_token", "too_long"}

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not here")


# --- the oracle -----------------------------------------------------------------------------------------------------


@dataclass
class Expected:
    ids: list[int]
    labels: list[int]


def messages_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Role and text of every message, whatever the shape of the row."""
    if "messages" in row:
        return [(message["role"], text_of(message["content"])) for message in row["messages"]]
    if "conversations" in row:
        return [(ROLES[message["from"]], message["value"]) for message in row["conversations"]]
    return [("user", row["prompt"]), ("assistant", row["completion"])]


def text_of(content: Any) -> str:
    return content if isinstance(content, str) else "\n".join(part["value"] for part in content)


def chatml(messages: list[tuple[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """The text, and where in it the model speaks: answer and terminator."""
    text, spans = "", []
    for role, content in messages:
        text += f"<|im_start|>{role}\n"
        start = len(text)
        text += f"{content}<|im_end|>"
        if role == "assistant":
            spans.append((start, len(text)))
        text += "\n"
    return text, spans


def oracle(tokenizer: Tokenizer, row: dict[str, Any]) -> Expected:
    text, spans = chatml(messages_of(row))
    encoding = tokenizer.encode(text, add_special_tokens=False)
    labels = []
    for place, (token, (start, end)) in enumerate(zip(encoding.ids, encoding.offsets, strict=True)):
        inside = any(first <= start and end <= last for first, last in spans)
        labels.append(token if inside and place > 0 else -100)
    while labels and labels[-1] == -100:
        labels.pop()
    return Expected(encoding.ids[: len(labels)], labels)


def rows_of(paths: list[Path]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Name of the source, number in it, and content of every row."""
    for path in paths:
        text = path.read_text(encoding="utf-8")
        lines = [line for line in text.split("\n") if line]  # `splitlines` would split at U+2028 as well
        rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in lines]
        for number, row in enumerate(rows):
            yield str(path), number, row


def rejected_rows(out: Path) -> dict[tuple[str, int], str]:
    """Reason by source and row; fails where a row is rejected twice."""
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    reasons = {(line["source"], line["row"]): line["reason"] for line in lines}
    assert len(reasons) == len(lines)
    assert all(line["detail"] for line in lines)
    return reasons


def assert_equals_oracle(out: Path, paths: list[Path], tokenizer: Tokenizer, capacity: int) -> None:
    """Every pack, example and label of `out`, and every row of `paths` kept or rejected exactly once."""
    expected = [(source, number, oracle(tokenizer, row)) for source, number, row in rows_of(paths)]
    reasons = rejected_rows(out)
    seen: Counter[int] = Counter()
    for pack in premask.open(out)["train"]:
        assert len(pack.input_ids) == sum(pack.seq_lengths) <= capacity
        start = 0
        for length, source_row in zip(pack.seq_lengths.tolist(), pack.source_rows.tolist(), strict=True):
            wanted, end = expected[source_row][2], start + length
            assert pack.input_ids[start:end].tolist() == wanted.ids, source_row
            assert pack.labels[start:end].tolist() == wanted.labels, source_row
            assert pack.position_ids[start:end].tolist() == list(range(length))
            seen[source_row] += 1
            start = end
    assert set(seen.values()) == {1}
    for global_row, (source, number, wanted) in enumerate(expected):
        assert (global_row in seen) != ((source, number) in reasons), (source, number)
        if global_row not in seen:
            assert reasons[source, number] == "too_long" and len(wanted.ids) > capacity


# --- the runs -------------------------------------------------------------------------------------------------------


def test_every_label_of_the_acceptance_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths, out = [CHAT / name for name in ACCEPTED], tmp_path / "out"
    call = ["prepare", *map(str, paths), "--tokenizer", str(DOLMA), "--out", str(out), "--max-length", "2048", "--json"]
    assert run(call) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["kept"], summary["rejected"]) == (11_599, 11_597, {"too_long": 2})
    assert summary["splits"]["train"]["packs"] * 2048 * 0.998 < summary["splits"]["train"]["tokens"]
    assert_equals_oracle(out, paths, Tokenizer.from_file(str(DOLMA / "tokenizer.json")), 2048)


def test_parts_of_text_and_weights_of_nought_and_one(tmp_path: Path) -> None:
    source, out = CHAT / "loss_weights.jsonl", tmp_path / "out"
    assert run(["prepare", str(source), "--tokenizer", str(DOLMA), "--out", str(out), "--quiet"]) == 0
    assert_equals_oracle(out, [source], Tokenizer.from_file(str(DOLMA / "tokenizer.json")), 4096)
    assert premask.open(out)["train"][0].loss_weights is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dolma2", "gpt-neox"])
def test_every_row_of_all_real_data_is_kept_or_rejected(name: str, tmp_path: Path) -> None:
    paths = sorted([*CHAT.iterdir(), *(DATA / "tools").iterdir()])
    out = tmp_path / "out"
    call = ["prepare", *map(str, paths), "--tokenizer", str(DATA / "tokenizers" / name), "--out", str(out), "--quiet"]
    assert run(call) == 0
    reasons = rejected_rows(out)
    assert set(reasons.values()) <= {*REASONS, *MASKING_REASONS}
    prepared = premask.open(out)
    kept = {row for pack in prepared["train"] for row in pack.source_rows.tolist()}
    total = 0
    for global_row, (source, number, _) in enumerate(rows_of(paths)):
        assert (global_row in kept) != ((source, number) in reasons), (source, number)
        total += 1
    rows = prepared.manifest["rows"]
    assert rows == {"in": total, "kept": len(kept), "rejected": dict(Counter(reasons.values()))}
    assert_counts_add_up(prepared)
    # Both templates write neither tool calls nor schemas; a row that is rejected for it has calls to write.
    not_rendered = {key for key, reason in reasons.items() if reason == "not_rendered"}
    calls = ("tool_call", "function_call")
    with_calls = {(s, n) for s, n, row in rows_of(paths) if any(word in json.dumps(row) for word in calls)}
    assert not_rendered <= with_calls
    assert not {source for source, _ in reasons if Path(source).parent == CHAT} - {str(CHAT / "kto_en.messages.json")}


def assert_counts_add_up(prepared: premask.Prepared) -> None:
    manifest, split = prepared.manifest, prepared.manifest["splits"]["train"]
    counts, packs = manifest["counts"], list(prepared["train"])
    assert split["tokens"] == sum(len(pack.input_ids) for pack in packs)
    assert split["supervised_tokens"] == sum(int((pack.labels != -100).sum()) for pack in packs)
    assert split["examples"] == sum(len(pack.seq_lengths) for pack in packs) == manifest["rows"]["kept"]
    assert split["packs"] == len(packs)
    left_out = counts.get("tokens_trimmed", 0) + counts.get("tokens_dropped", 0)
    assert counts["tokens_in"] == split["tokens"] + left_out
