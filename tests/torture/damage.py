"""The damage test: flipped, cut, lost and swapped files of a finished dataset; verify finds each, repair mends each."""

import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import small  # noqa: E402


@dataclass
class Tally:
    """What the damage test has seen."""

    damages: Counter[str] = field(default_factory=Counter)
    """By kind and file."""
    bytes: int = 0
    """Compared after repair."""
    failures: list[str] = field(default_factory=list)


Damage = Callable[[random.Random, Path, list[Path]], list[Path]]
"""Damages one file, or two of those in the list; returns the ones that were damaged."""


def flip_a_bit(rng: random.Random, path: Path, others: list[Path]) -> list[Path]:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return [path]


def change_a_byte(rng: random.Random, path: Path, others: list[Path]) -> list[Path]:
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    content[place] = (content[place] + rng.randint(1, 255)) % 256
    path.write_bytes(content)
    return [path]


def zero_a_block(rng: random.Random, path: Path, others: list[Path]) -> list[Path]:
    content = path.read_bytes()
    start = rng.randrange(len(content))
    block = content[start : start + 4096]
    path.write_bytes(content[:start] + bytes(len(block)) + content[start + len(block) :])
    return [path] if any(block) else flip_a_bit(rng, path, others)


def truncate(rng: random.Random, path: Path, others: list[Path]) -> list[Path]:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])
    return [path]


def lengthen(rng: random.Random, path: Path, others: list[Path]) -> list[Path]:
    path.write_bytes(path.read_bytes() + rng.randbytes(rng.randint(1, 100)))
    return [path]


def cut_out_a_byte(rng: random.Random, path: Path, others: list[Path]) -> list[Path]:
    content = path.read_bytes()
    place = rng.randrange(len(content))
    path.write_bytes(content[:place] + content[place + 1 :])
    return [path]


def swap_bytes(rng: random.Random, path: Path, others: list[Path]) -> list[Path]:
    content = bytearray(path.read_bytes())
    one = rng.randrange(len(content))
    two = next((n for n in rng.sample(range(len(content)), len(content)) if content[n] != content[one]), None)
    if two is None:
        return flip_a_bit(rng, path, others)
    content[one], content[two] = content[two], content[one]
    path.write_bytes(content)
    return [path]


def delete(rng: random.Random, path: Path, others: list[Path]) -> list[Path]:
    path.unlink()
    return [path]


def swap_files(rng: random.Random, path: Path, others: list[Path]) -> list[Path]:
    content = path.read_bytes()
    other = next((o for o in rng.sample(others, len(others)) if o.read_bytes() != content), None)
    if other is None:
        return delete(rng, path, others)
    path.write_bytes(other.read_bytes())
    other.write_bytes(content)
    return [path, other]


def copy_over(rng: random.Random, path: Path, others: list[Path]) -> list[Path]:
    content = path.read_bytes()
    other = next((o for o in rng.sample(others, len(others)) if o.read_bytes() != content), None)
    if other is None:
        return truncate(rng, path, others)
    path.write_bytes(other.read_bytes())
    return [path]


def rename(rng: random.Random, path: Path, others: list[Path]) -> list[Path]:
    """Only shards: repair leaves alone what may be somebody's own."""
    if path.suffix != ".arrow" or "-of-" not in path.name:
        return delete(rng, path, others)
    path.rename(path.with_name(f"data-{rng.randint(90000, 99999)}-of-00001.arrow"))
    return [path]


KINDS: Sequence[Damage] = (
    flip_a_bit,
    flip_a_bit,
    change_a_byte,
    zero_a_block,
    truncate,
    lengthen,
    cut_out_a_byte,
    swap_bytes,
    delete,
    swap_files,
    copy_over,
    rename,
)


class Patient:
    """A dataset that is damaged and mended again and again."""

    def __init__(self, folder: Path, rng: random.Random, rows: int = 60) -> None:
        from premask.cli import run

        small.shrink()
        self.rng, self.out, self.spare = rng, folder / "out", folder / "spare"
        self.sources = small.write_mixture(folder / "sources", rows)
        code = run(small.arguments(self.sources, self.out, "--workers", "1"))
        if code:
            raise AssertionError(f"the dataset could not be prepared: {code}")
        shutil.copytree(self.out, self.spare)
        self.expected = small.digests(self.out)
        self.size = sum(path.stat().st_size for path in self.out.rglob("*") if path.is_file())
        self.tally = Tally()

    def suffer(self, wounds: int = 1) -> None:
        """Damage so many files, verify, repair, compare."""
        from premask.repair import repair
        from premask.verify import verify

        names = sorted(self.expected)
        done: list[str] = []
        for _ in range(wounds):
            path = self.out / self.rng.choice(names)
            others = [self.out / name for name in names if (self.out / name).exists() and self.out / name != path]
            if path.exists() and path.stat().st_size:
                damage = self.rng.choice(KINDS)
                hit = damage(self.rng, path, others)
                names = [name for name in names if self.out / name not in hit and self._may_follow(name, hit)]
                self.tally.damages[damage.__name__.replace("_", " ")] += 1
                done += [f"{damage.__name__} {p.relative_to(self.out)}" for p in hit]
        try:
            report = verify(self.out, workers=1)
            named = {damage.file for damage in report.damages}
            lost = [] if "manifest.json" in named else [d for d in done if d.split(" ", 1)[1] not in named]
            if report.ok or lost:
                self._fail(f"not found: {lost or done}")
            repaired = repair(self.out, workers=1)
            wrong = small.differences(self.expected, small.digests(self.out))
            if wrong or repaired.left or not verify(self.out, workers=1).ok:
                self._fail(f"not mended: {done}: {wrong or repaired.left}")
        except Exception as error:
            self._fail(f"{done}: {type(error).__name__}: {error}")
        self.tally.bytes += self.size
        if (self.out / small.UNREPEATABLE).read_bytes() != (self.spare / small.UNREPEATABLE).read_bytes():
            shutil.copy(self.spare / small.UNREPEATABLE, self.out)

    def _may_follow(self, name: str, hit: list[Path]) -> bool:
        """The manifest and run.json are each other's spare: one of them has to survive."""
        pair = {"manifest.json", small.UNREPEATABLE}
        return name not in pair or not any(path.name in pair for path in hit)

    def _fail(self, text: str) -> None:
        self.tally.failures.append(text)
        print(text, file=sys.stderr, flush=True)
        shutil.rmtree(self.out)
        shutil.copytree(self.spare, self.out)


def run(folder: Path, damages: int, seed: int, rows: int = 60) -> Tally:
    """Damage until so many damages are done, mostly one at a time, sometimes several."""
    patient = Patient(folder, random.Random(seed), rows)
    while patient.tally.damages.total() < damages and len(patient.tally.failures) < 10:
        patient.suffer(patient.rng.choice((1, 1, 1, 2, 4)))
    return patient.tally


def report(tally: Tally) -> list[str]:
    """The tally in lines."""
    lines = [f"{tally.damages.total()} damages", *(f"  {n:4}  {name}" for name, n in tally.damages.most_common())]
    return [*lines, f"{tally.bytes:,} bytes compared", *tally.failures]
