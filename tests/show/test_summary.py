import io

from rich.console import Console

from premask.show.summary import summary


def drawn(**counts):
    out = io.StringIO()
    Console(file=out, width=80).print(summary(**counts))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_summary_reads_the_same_in_a_log():
    lines = drawn(
        rows=24_425,
        kept=24_400,
        rejected={"broken_json": 5, "mask_unproven": 20},
        tokens={"in": 4_100_000, "kept": 4_065_000, "trimmed": 25_000, "dropped": 9_000, "left_out": 1_000},
        turns={"in": 50_000, "kept": 50_000, "dropped": 0},
        mix=[],
        splits={
            "train": {
                "examples": 24_000,
                "packs": 1_000,
                "packs_at_least": 999,
                "tokens": 4_000_000,
                "supervised": 1_000_000,
            },
            "validation": {
                "examples": 400,
                "packs": 17,
                "packs_at_least": 16,
                "tokens": 65_000,
                "supervised": 20_000,
            },
        },
        max_length=4096,
        seconds=2.5,
    )
    assert lines == [
        "source rows           24,425",
        "  kept                24,400  99.90 %",
        "  rejected                25  0.10 %",
        "    mask_unproven         20  0.08 %",
        "    broken_json            5  0.02 %",
        "tokens             4,100,000",
        "  kept             4,065,000  99.15 %",
        "  trimmed             25,000  0.61 %  behind an example's last trained one",
        "  dropped              9,000  0.22 %  too long",
        "  left out             1,000  0.02 %  by filters, duplicates, weights",
        "turns                 50,000",
        "  kept                50,000  100.00 %",
        "train",
        "  examples            24,000",
        "  tokens           4,000,000",
        "  trained          1,000,000  25.00 %",
        "  packs                1,000  of 4,096 tokens, 97.66 % full; 999 at least",
        "validation",
        "  examples               400",
        "  tokens              65,000",
        "  trained             20,000  30.77 %",
        "  packs                   17  of 4,096 tokens, 93.35 % full; 16 at least",
        "seconds                  2.5  1,640,000 tokens/s",
    ]


def test_nothing_kept_divides_by_nothing():
    nothing = {"in": 0, "kept": 0}
    lines = drawn(
        rows=0, kept=0, rejected={}, tokens=nothing, turns=nothing, mix=[], splits={}, max_length=2048, seconds=0.0
    )
    assert lines == [
        "source rows    0",
        "  kept         0",
        "tokens         0",
        "turns          0",
        "seconds      0.0",
    ]


def test_a_mix_says_what_bounds_it():
    mix = [
        {"path": "a/chat.jsonl", "examples": 1_000, "bounds": True},
        {"path": "b/chat.jsonl", "examples": 500, "bounds": False},
        {"path": "s3://bucket/tools.parquet", "examples": 500, "bounds": False},
        {"path": "few.csv", "examples": 0, "bounds": False},
    ]
    some = {"in": 1, "kept": 1}
    lines = drawn(rows=1, kept=1, rejected={}, tokens=some, turns=some, mix=mix, splits={}, max_length=8, seconds=0.0)
    assert lines[-5:] == [
        "mix of train     2,000",
        "  a/chat.jsonl   1,000  50.00 %  all that there is: it bounds the mix",
        "  b/chat.jsonl     500  25.00 %",
        "  tools.parquet    500  25.00 %",
        "  few.csv            0  0.00 %  its weight is too small for a single example",
    ]
