"""`premask prepare`, and `premask recipe`, which shows what it would run."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from premask.cli.options import FOLDER, described

SUMMARY = ("rows", "kept", "rejected", "tokens", "turns", "mix", "splits", "max_length", "seconds")
"""What is shown to people of the summary that `prepare` returns; `--json` prints all of it."""

REMARKS = ("counts", "rejected", "splits", "out")
"""What the sentences under it are made from."""


class RecipeCommand(click.Command):
    """A command whose help ends with the options of the recipe, taken from the recipe itself."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from premask.recipe import Recipe

        with formatter.section("Recipe options, for --set and the keys of a recipe file"):
            formatter.write_dl([(name, described(field)) for name, field in Recipe.model_fields.items()])


def recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """What makes a recipe on the command line."""
    for option in (
        click.option(
            "--set", "sets", multiple=True, metavar="OPTION=VALUE", help="Any recipe option; may be repeated."
        ),
        click.option(
            "--validation", type=float, metavar="SHARE", help="Share of the conversations kept for validation."
        ),
        click.option("--format", metavar="FORMAT", help="auto, messages, sharegpt, alpaca, prompt-completion or text."),
        click.option(
            "--limit",
            type=int,
            metavar="N",
            help="Only the first N rows of every source (of a folder or pattern, of all its files together).",
        ),
        click.option("--max-length", type=int, metavar="N", help="Length of a pack in tokens."),
        click.option("--template", metavar="NAME|FILE", help="Chat template, instead of the tokenizer's own."),
        click.option(
            "--recipe", "file", type=click.Path(path_type=Path), metavar="FILE.yaml", help="Options from a file."
        ),
        click.option("--tokenizer", metavar="DIR|ORG/NAME", help="The model's tokenizer."),
        click.argument("sources", nargs=-1, metavar="[SOURCE]..."),
    ):
        command = option(command)
    return command


@click.command(cls=RecipeCommand, short_help="Prepare sources once, for any trainer to stream.")
@recipe_options
@click.option("--out", required=True, type=FOLDER, help="Folder to write the prepared dataset to.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Processes; by default at most one per core.")
@click.option(
    "--encoder",
    default="auto",
    metavar="NAME",
    show_default=True,
    help="Who gives the ids: auto, tokenizers or fastokens.",
)
@click.option("--fresh", is_flag=True, help="Begin anew instead of going on where an earlier run stopped.")
@click.option("--strict", is_flag=True, help="Fail (exit code 1) when any source row is rejected.")
@click.option("--keep-stage", is_flag=True, help="Keep the stage files of phase 1.")
@click.option("--profile", is_flag=True, help="Print where the time went, stage by stage.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def prepare(
    out: Path,
    file: Path | None,
    workers: int | None,
    encoder: str,
    sets: tuple[str, ...],
    fresh: bool,
    strict: bool,
    keep_stage: bool,
    profile: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Prepare SOURCES (files, folders, patterns, URLs or datasets of the Hub) once, for any trainer to stream."""
    from premask.prepare import prepare
    from premask.recipe import recipe_from
    from premask.show.progress import progress_for

    recipe = recipe_from(options, file, sets)
    with contextlib.closing(progress_for(silent=quiet or as_json)) as progress:
        summary = prepare(
            recipe,
            out,
            workers=workers,
            fresh=fresh,
            strict=strict,
            keep_stage=keep_stage,
            encoder=encoder,
            progress=progress,
        )
    if profile:
        from premask.show.profile import profile_lines

        click.echo("\n".join(profile_lines(out)), err=True)
    if as_json:
        click.echo(json.dumps(summary, sort_keys=True))
    elif not quiet:
        from rich.console import Console

        from premask.show.summary import remarks
        from premask.show.summary import summary as table

        Console().print(table(**{key: summary[key] for key in SUMMARY}))
        click.echo("\n".join(["", *remarks(**{key: summary[key] for key in REMARKS})]))


@click.command(cls=RecipeCommand, short_help="Check a recipe, and show it with all its options.")
@recipe_options
@click.option("--print", "printed", is_flag=True, help="Print it as YAML, as the manifest stores it.")
def recipe(file: Path | None, sets: tuple[str, ...], printed: bool, **options: Any) -> None:
    """Check a recipe; with --print show it with every option resolved. Sources and tokenizer are not looked at."""
    from premask.recipe import recipe_from

    resolved = recipe_from(options, file, sets).resolved()
    if printed:
        import yaml

        click.echo(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True), nl=False)
