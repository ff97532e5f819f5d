"""Memory of a preparation: its workers' does not grow with the sources, the driver's by few bytes an example.

The driver's phase is run on stage files of many short examples in a process of its own, of which the kernel says the
most that it ever held. tests/bench/memory.py measures whole preparations of 1 and 2 GB.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from premask.dtypes import Examples
from premask.store.stage import write_stage

pytestmark = pytest.mark.slow

ROWS, BATCH = 20_000, 512
FEW, MANY = 20, 60
"""Stage files of `ROWS` examples each."""

DRIVER = """
import json, sys
from pathlib import Path
import polars
from premask.planning import plan_splits, pool_of
from premask.recipe import Recipe
from premask.store.plan_file import write_plan
from premask.store.stage import StageFiles

paths = sorted(Path(sys.argv[1]).glob("*.arrow"))[: int(sys.argv[2])]
files = StageFiles(paths)
recipe = Recipe(**{"sources": ["a"], "tokenizer": "t"} | json.loads(sys.argv[3]))
entries = [n * len(recipe.sources) // len(paths) for n in range(len(paths))]
pool = pool_of(files, [20_000 * n for n in range(len(paths))], entries)
planned = plan_splits(recipe, pool, lambda: (stage.digests for stage in files), 2**22)
write_plan(Path(sys.argv[1]) / "plan", planned.plans)
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def write_examples(path: Path, seed: int) -> None:
    chance = np.random.default_rng(seed)

    def batch(first: int, count: int) -> Examples:
        lengths = np.minimum(chance.lognormal(3, 1, count).astype(np.int64) + 2, 2000)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return Examples(
            ids=np.zeros(offsets[-1], np.int32),
            offsets=offsets,
            spans=np.stack([np.ones(count), lengths], axis=1).astype(np.int32),
            span_offsets=np.arange(count + 1),
            span_weights=np.ones(count, np.float32),
            rows=np.arange(first, first + count),
            turns=np.ones(count, np.int32),
            source_turns=np.full(count, -1, np.int32),
            digests=chance.integers(0, 256, (count, 16), dtype=np.uint8),
        )

    write_stage(path, (batch(first, min(BATCH, ROWS - first)) for first in range(0, ROWS, BATCH)))


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages")
    for number in range(MANY):
        write_examples(folder / f"{number:03d}.arrow", number)
    return folder


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ("{}", 40),
        ('{"duplicates": "drop"}', 56),
        ('{"sources": [{"path": "a", "weight": 1}, {"path": "b", "weight": 2}]}', 45),
        ('{"validation": 0.05}', 45),
    ],
)
def test_the_driver_grows_by_few_bytes_an_example(stages: Path, options: str, most: int) -> None:
    """Where only some examples are trained on, their numbers take 4 bytes more."""

    def held(files: int) -> int:
        command = [sys.executable, "-c", DRIVER, str(stages), str(files), options]
        return 1024 * int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    growth = (held(MANY) - held(FEW)) / (ROWS * (MANY - FEW))
    print(f"{options}: {growth:.1f} bytes an example")
    assert 16 < growth <= most


def test_workers_hold_no_more_of_larger_sources() -> None:
    bench = Path(__file__).parent / "bench/memory.py"
    done = subprocess.run(
        [sys.executable, str(bench), "--megabytes", "40"], check=False, capture_output=True, text=True
    )
    print(done.stdout)
    assert done.returncode in (0, 1), done.stderr
    assert "worker holds" not in done.stdout.replace("budget met", "")
