"""Memory does not grow with the file: read in a process of its own that is asked what it holds, and has held.

By default a small file of the kinds that tempt one to read them whole: JSON lines, an array on a single line, a Parquet
file of one row group. `slow`: 300 MB of every kind.
"""

import gzip
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROWS, SMALL = 150_000, 40_000
LIMIT_MB, SMALL_MB = 90, 60

READER = """
import sys, time
from pathlib import Path
import pyarrow.parquet
from premask.read import cut_into_lines, open_sources, parse, partitions, read_partition

def held(what="RssAnon"):
    status = Path("/proc/self/status").read_text()
    return int(status.split(what + ":")[1].split()[0]) / 1024

(source,) = open_sources([sys.argv[1]])
base = peak = held()
before = held("VmHWM")
began, count = time.perf_counter(), 0
if source.sliceable:
    parts = partitions(source)
    for part in parts:
        for rows in read_partition(part):
            for raw in rows.raws:
                count += type(parse(raw)) is dict
                if count % 500 == 0:
                    peak = max(peak, held())
else:
    def write(number, data):
        global count, peak
        count += data.count(b"\\n")
        peak = max(peak, held())
    parts = range(cut_into_lines(source, write, 2**24))
print(len(parts), count, peak - base, held("VmHWM") - before, time.perf_counter() - began)
"""


@pytest.fixture(scope="module")
def words() -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(20_000)]


def rows(words: list[str], count: int) -> Iterator[dict[str, list[dict[str, str]]]]:
    rng = random.Random(1)
    texts = [" ".join(rng.choices(words, k=150)) for _ in range(3000)]
    for n in range(count):
        asked = {"role": "user", "content": f"{n} {rng.choice(texts)}"}
        yield {"messages": [asked, {"role": "assistant", "content": f"{rng.choice(texts)} {n}"}]}


def write(path: Path, kind: str, words: list[str], count: int) -> None:
    if kind in ("parquet", "arrow"):
        table = pa.Table.from_pylist(list(rows(words, count)))
        if kind == "parquet":
            pq.write_table(table, path, row_group_size=count)
        else:
            with pa.ipc.new_file(str(path), table.schema) as file:
                file.write_table(table.combine_chunks(), max_chunksize=count)
        return
    with gzip.GzipFile(path, "wb", 1) if kind == "gzip" else path.open("wb") as file:
        file.write({"array": b"[", "csv": b"prompt,completion\n"}.get(kind, b""))
        for n, row in enumerate(rows(words, count)):
            if kind == "csv":
                asked, answered = (message["content"] for message in row["messages"])
                file.write(f'{asked},"{answered}"\n'.encode())
            else:
                file.write(b"," if kind == "array" and n else b"")
                file.write(json.dumps(row).encode() + (b"" if kind == "array" else b"\n"))
        file.write(b"]" if kind == "array" else b"")


def read(path: Path) -> tuple[int, int, float, float]:
    """Partitions, rows, and megabytes that a process came to hold at once: of its own, and in all."""
    run = subprocess.run([sys.executable, "-c", READER, str(path)], capture_output=True, text=True, check=True)
    parts, count, own, peak, seconds = map(float, run.stdout.split())
    megabytes = path.stat().st_size / 1e6
    print(f"{path.name}: {megabytes:.0f} MB, {parts:.0f} parts, {own:.0f} MB held ({peak:.0f} MB), {seconds:.1f} s")
    return int(parts), int(count), own, peak


@pytest.mark.parametrize("kind", ["jsonl", "array", "parquet"])
def test_a_file_need_not_fit_in_memory(tmp_path: Path, words: list[str], kind: str) -> None:
    path = tmp_path / kind
    write(path, kind, words, SMALL)
    _, count, _, peak = read(path)
    assert count == SMALL
    assert peak < SMALL_MB < path.stat().st_size / 1e6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "array", "gzip", "csv", "parquet", "arrow"])
def test_memory_is_bounded(tmp_path: Path, words: list[str], kind: str) -> None:
    path = tmp_path / ("rows.csv" if kind == "csv" else "rows")
    write(path, kind, words, ROWS)
    parts, count, own, _ = read(path)
    assert count == ROWS
    assert parts > 10
    assert own < LIMIT_MB
