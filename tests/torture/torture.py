"""`make torture`: the kill test and the damage test in full, with a report. Exit code 1 where anything went wrong.

    python torture.py [--kills 200] [--damages 500] [--seed N] [--folder DIR]

About fifteen minutes on two cores. Without --folder everything happens in a temporary one, which is kept on failure.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import damage
import kills


def main() -> int:
    """Both tests, one after the other."""
    parser = argparse.ArgumentParser(description="Kill runs and damage datasets, many times; compare every byte.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--damages", type=int, default=500)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="premask-torture-"))
    print(f"seed {asked.seed}, in {folder}", flush=True)
    failures = 0
    for name, module, count in (("kills", kills, asked.kills), ("damages", damage, asked.damages)):
        began = time.monotonic()
        tally = module.run(folder / name, count, asked.seed)
        failures += len(tally.failures)
        print(f"\n{name}, {time.monotonic() - began:.0f} s", *module.report(tally), sep="\n", flush=True)
    print(f"\n{failures} failures" if failures else "\nevery byte as it should be")
    if not failures and asked.folder is None:
        shutil.rmtree(folder)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
