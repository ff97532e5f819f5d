"""`premask verify` and `premask repair`."""

import contextlib
import json
from pathlib import Path

import click

from premask.cli.options import FOLDER


@click.command(short_help="Check a prepared dataset: checksums, invariants, counts.")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--against", "sources", multiple=True, metavar="SOURCE", help="Mask rows of the sources again.")
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="So many source rows of them [default: 1000].")
@click.option("--all", "every", is_flag=True, help="All source rows.")
@click.option("--tokenizer", metavar="DIR|ORG/NAME", help="Where the dataset's tokenizer is now, if it has moved.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Processes; by default one per usable core.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def verify(
    folder: Path,
    sources: tuple[str, ...],
    sample: int | None,
    every: bool,
    tokenizer: str | None,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Check the prepared dataset in DIR; exit code 1 where it is damaged."""
    if (sample or every) and not sources:
        raise click.UsageError("--sample and --all count the rows of --against SOURCE: name the sources")
    if sample and every:
        raise click.UsageError("--sample and --all exclude each other: give one of them")
    from premask.errors import DataError
    from premask.show.progress import progress_for
    from premask.show.verdict import remedy, verdict
    from premask.verify import verify

    rows = None if every else sample or 1000
    with contextlib.closing(progress_for(silent=quiet or as_json)) as progress:
        report = verify(folder, against=sources, sample=rows, tokenizer=tokenizer, workers=workers, progress=progress)
    if as_json:
        click.echo(json.dumps(report.as_json(), sort_keys=True))
    elif not quiet:
        click.echo("\n".join(verdict(report.as_json())))
    if not report.ok:
        raise DataError(remedy(report.as_json()))


@click.command(short_help="Rebuild the damaged files of a prepared dataset.")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--source", "sources", multiple=True, metavar="FILE", help="Where the sources are now, if they moved.")
@click.option("--tokenizer", metavar="DIR|ORG/NAME", help="Where the dataset's tokenizer is now, if it has moved.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Processes; by default one per usable core.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as one JSON object.")
def repair(
    folder: Path, sources: tuple[str, ...], tokenizer: str | None, workers: int | None, quiet: bool, as_json: bool
) -> None:
    """Rebuild just the files of DIR that `premask verify` calls changed or missing, byte for byte."""
    from premask.errors import DataError
    from premask.repair import repair
    from premask.show.progress import progress_for
    from premask.show.verdict import repair_lines

    with contextlib.closing(progress_for(silent=quiet or as_json)) as progress:
        done = repair(folder, sources=sources, tokenizer=tokenizer, workers=workers, progress=progress)
    if as_json:
        click.echo(json.dumps(done.as_json(), sort_keys=True))
    elif not quiet:
        click.echo("\n".join(repair_lines(**done.as_json())) or f"{folder}: nothing is damaged")
    if done.left:
        raise DataError(f"{folder}: what is left cannot be repaired: remove it yourself, or prepare the dataset again")
