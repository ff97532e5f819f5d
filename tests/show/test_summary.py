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
        splits={
            "train": {"examples": 24_000, "packs": 1_000, "tokens": 4_000_000, "supervised": 1_000_000},
            "validation": {"examples": 400, "packs": 17, "tokens": 65_000, "supervised": 20_000},
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
        "train",
        "  examples            24,000",
        "  tokens           4,000,000",
        "  trained          1,000,000  25.00 %",
        "  packs                1,000  of 4,096 tokens, 97.66 % full",
        "validation",
        "  examples               400",
        "  tokens              65,000",
        "  trained             20,000  30.77 %",
        "  packs                   17  of 4,096 tokens, 93.35 % full",
        "seconds                  2.5  1,626,000 tokens/s",
    ]


def test_nothing_kept_divides_by_nothing():
    lines = drawn(rows=0, kept=0, rejected={}, splits={}, max_length=2048, seconds=0.0)
    assert lines == ["source rows    0", "  kept         0", "seconds      0.0"]
