"""The command line: options in, exit code out. Whatever is heavy is imported inside the command that needs it.

Exit codes: 0 done; 1 the data or the dataset is at fault; 2 the call is wrong; 3 the machine failed; 70 a bug in
premask; 130 interrupted (Ctrl-C); 143 ended by SIGTERM. Results go to standard output, all else to standard error.
"""

import contextlib
import datetime
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

INTERRUPTED = 128 + signal.SIGINT
SUMMARY = ("rows", "kept", "rejected", "tokens", "turns", "mix", "splits", "max_length", "seconds")
"""What is shown to people of the summary that `prepare` returns; `--json` prints all of it."""

REMARKS = ("counts", "rejected", "splits", "out")
"""What the sentences under it are made from."""

FOLDER = click.Path(file_okay=False, path_type=Path)


def main() -> NoReturn:
    """The `premask` command."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors are printed, not raised."""
    try:
        premask.main(list(arguments), prog_name="premask", standalone_mode=False)
    except click.ClickException as error:
        return _report(_worded(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return _report("interrupted; run the same command again to go on where it stopped", INTERRUPTED)
    except Exception as error:
        from premask.run.items import explain

        understood = explain(error)
        return _report(str(understood), understood.exit_code)
    return 0


def _terminate(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)  # unwinds: workers are ended, locks and temporary files go


def _worded(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    return error.format_message() + (f"\nSee `{context.command_path} --help`." if context else "")


def _report(message: str, code: int) -> int:
    if os.environ.get("PREMASK_DEBUG") == "1" and code != INTERRUPTED:
        traceback.print_exc()
    elif code == 70:
        message += " PREMASK_DEBUG=1 shows where it happened."
    with contextlib.suppress(OSError):  # a log on a full disk must not hide the exit code
        click.echo("premask: error: " + message.replace("\n", "\n  "), err=True)
    return code


def _print_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from premask import __version__

        click.echo(f"premask {__version__}")
        context.exit()


class _RecipeCommand(click.Command):
    """A command whose help ends with the options of the recipe, taken from the recipe itself."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from premask.recipe import Recipe

        with formatter.section("Recipe options, for --set and the keys of a recipe file"):
            formatter.write_dl([(name, _described(field)) for name, field in Recipe.model_fields.items()])


def _described(field: Any) -> str:
    choices = [str(choice) for choice in getattr(field.annotation, "__args__", ()) if isinstance(choice, str)]
    plain = isinstance(field.default, str | int | float | datetime.date)  # not a list, an object, or nothing
    default = f" [default: {str(field.default).replace('True', 'true').replace('False', 'false')}]" if plain else ""
    return (f"{'|'.join(choices)}: " if choices else "") + (field.description or "").replace("\n", " ") + default


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}, no_args_is_help=False)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Print the version."
)
def premask() -> None:
    """Prepare chat data for supervised fine-tuning: rendered, tokenized, masked per turn, packed into Arrow shards."""


def _recipe_options(command: Callable[..., None]) -> Callable[..., None]:
    """What makes a recipe on the command line."""
    for option in (
        click.option(
            "--set", "sets", multiple=True, metavar="OPTION=VALUE", help="Any recipe option; may be repeated."
        ),
        click.option(
            "--validation", type=float, metavar="SHARE", help="Share of the conversations kept for validation."
        ),
        click.option("--format", metavar="FORMAT", help="auto, messages, sharegpt, alpaca, prompt-completion or text."),
        click.option("--limit", type=int, metavar="N", help="Only the first N rows of every source."),
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


@premask.command(cls=_RecipeCommand, short_help="Prepare sources once, for any trainer to stream.")
@_recipe_options
@click.option("--out", required=True, type=FOLDER, help="Folder to write the prepared dataset to.")
@click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Processes; by default at most one per core.")
@click.option("--encoder", default="auto", show_default=True, help="Who gives the ids: tokenizers or fastokens.")
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


@premask.command(cls=_RecipeCommand, short_help="Check a recipe, and show it with all its options.")
@_recipe_options
@click.option("--print", "printed", is_flag=True, help="Print it as YAML, as the manifest stores it.")
def recipe(file: Path | None, sets: tuple[str, ...], printed: bool, **options: Any) -> None:
    """Check a recipe; with --print show it with every option resolved. Sources and tokenizer are not looked at."""
    from premask.recipe import recipe_from

    resolved = recipe_from(options, file, sets).resolved()
    if printed:
        import yaml

        click.echo(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True), nl=False)


@premask.command(short_help="Show the tokens of prepared packs, trained and masked.")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--split", default="train", show_default=True, help="Split to look into.")
@click.option("--pack", type=click.IntRange(min=0), metavar="N", help="Show pack N.")
@click.option("--source-row", type=click.IntRange(min=0), metavar="N", help="Show what became of source row N.")
@click.option("--tokenizer", metavar="DIR|ORG/NAME", help="Where the dataset's tokenizer is now, if it has moved.")
@click.option("--no-color", is_flag=True, help="Brackets instead of colours; also when NO_COLOR is set.")
def view(
    folder: Path, split: str, pack: int | None, source_row: int | None, tokenizer: str | None, no_color: bool
) -> None:
    """Show the tokens of prepared packs: which are trained, which are masked, where examples begin."""
    if pack is not None and source_row is not None:
        raise click.UsageError("--pack and --source-row exclude each other: give one of them")
    from premask.show.dataset import show

    show(folder, split=split, pack=pack, source_row=source_row, tokenizer=tokenizer, color=not no_color)


@premask.command(short_help="Show what was discovered of a chat template.")
@click.option("--tokenizer", required=True, metavar="DIR|ORG/NAME", help="The model's tokenizer.")
@click.option("--template", metavar="NAME|FILE", help="Chat template, instead of the tokenizer's own.")
@click.option("--set", "sets", multiple=True, metavar="OPTION=VALUE", help="Any recipe option; may be repeated.")
@click.option("--no-color", is_flag=True, help="No colours; also when NO_COLOR is set.")
def markers(tokenizer: str, template: str | None, sets: tuple[str, ...], no_color: bool) -> None:
    """Show a template's markers, the features that it supports, what to know of it, and an example."""
    from rich.console import Console

    from premask.encode.files import load_tokenizer_files
    from premask.mask.lints import lints
    from premask.maskers import build_masker
    from premask.recipe import recipe_from
    from premask.show.grammar import render_grammar

    recipe = recipe_from({"sources": ("-",), "tokenizer": tokenizer, "template": template}, None, sets)
    masker = build_masker(recipe, load_tokenizer_files(recipe.tokenizer))
    console = Console(highlight=False, no_color=no_color or None)
    console.print(render_grammar(masker.grammar, list(lints(masker.grammar, masker.vocabulary))))
    if masker.with_tools is not None:
        console.print("conversations with tools are rendered by the tokenizer's template `tool_use`:", style="bold")
        grammar = masker.with_tools.grammar
        console.print(render_grammar(grammar, list(lints(grammar, masker.vocabulary))))


@premask.command(short_help="Follow one source row through every stage.")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--source-row", type=click.IntRange(min=0), required=True, metavar="N", help="Global number of the row.")
@click.option("--source", "sources", multiple=True, metavar="FILE", help="Where the sources are now, if they moved.")
@click.option("--tokenizer", metavar="DIR|ORG/NAME", help="Where the dataset's tokenizer is now, if it has moved.")
@click.option("--no-color", is_flag=True, help="No colours; also when NO_COLOR is set.")
def explain(folder: Path, source_row: int, sources: tuple[str, ...], tokenizer: str | None, no_color: bool) -> None:
    """Show one conversation as rendered: who wrote which text, what is trained, and why."""
    from rich.console import Console

    from premask.explain import explain

    console = Console(highlight=False, no_color=no_color or None)
    explain(console, folder, source_row, sources=list(sources), tokenizer=tokenizer)


@premask.command(short_help="Check a prepared dataset: checksums, invariants, counts.")
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


@premask.command(short_help="Rebuild the damaged files of a prepared dataset.")
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


@premask.command(short_help="Mask a dataset that is tokenized already.")
@click.argument("dataset", metavar="DATASET", type=click.Path(exists=True, path_type=Path))
@click.option("--tokenizer", required=True, metavar="DIR|ORG/NAME", help="The tokenizer that its rows were made with.")
@click.option("--out", required=True, type=FOLDER, help="New folder to write the masked dataset to.")
@click.option("--template", metavar="NAME|FILE", help="Chat template, instead of the tokenizer's own.")
@click.option("--instruction-part", metavar="TEXT", help="What a user's turn begins with, instead of the template's.")
@click.option("--response-part", metavar="TEXT", help="What an assistant's turn begins with.")
@click.option("--last-response-only", is_flag=True, help="Train only the last turn of every row.")
@click.option(
    "--mask",
    type=click.Choice(["sampled", "unsloth"]),
    default="sampled",
    show_default=True,
    help="What the model emits, or what Unsloth's function trains.",
)
@click.option(
    "--no-response",
    type=click.Choice(["error", "drop"]),
    default="error",
    show_default=True,
    help="What becomes of rows with nothing to train.",
)
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as one JSON object.")
def remask(
    dataset: Path,
    tokenizer: str,
    out: Path,
    template: str | None,
    instruction_part: str | None,
    response_part: str | None,
    last_response_only: bool,
    mask: Any,
    no_response: Any,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write DATASET (a folder written by `datasets`, or Parquet) with labels that are found from its ids alone."""
    from dataclasses import asdict

    from premask.feed.markers import parts_of
    from premask.feed.remask import masking_of, remask, told

    parts = parts_of(None, instruction_part, response_part)
    masking = masking_of(tokenizer, template, parts, mask=mask, last_response_only=last_response_only)
    counts = remask(dataset, out, masking, no_response)
    if as_json:
        click.echo(json.dumps(asdict(counts), sort_keys=True))
    elif not quiet:
        click.echo("\n".join(told(counts)))


class _TrainCommand(click.Command):
    """`train`, whose help ends with the options of its config."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from premask_trainer.config import TrainConfig

        with formatter.section("Options of the config, for --set and the keys of a config file"):
            formatter.write_dl([(name, _described(field)) for name, field in TrainConfig.model_fields.items()])


@premask.command(cls=_TrainCommand, short_help="Fine-tune a model on a prepared dataset (QLoRA).")
@click.option("--data", metavar="DIR", help="The prepared dataset.")
@click.option("--model", metavar="DIR|ORG/NAME", help="The base model.")
@click.option("--out", metavar="DIR", help="Folder for checkpoints, metrics and the trained adapter.")
@click.option("--config", "file", type=click.Path(path_type=Path), metavar="FILE.yaml", help="Options from a file.")
@click.option("--epochs", type=int, metavar="N", help="Times through the dataset.")
@click.option("--max-steps", type=int, metavar="N", help="Stop after so many steps, whatever the epochs.")
@click.option("--learning-rate", type=float, metavar="RATE", help="The highest learning rate.")
@click.option("--batch-size", type=int, metavar="N", help="Packs per step, over all ranks.")
@click.option("--merge", metavar="16bit", help="Also write the model with the adapter merged into it.")
@click.option("--set", "sets", multiple=True, metavar="OPTION=VALUE", help="Any option of the config; may be repeated.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint in --out, if there is one.")
@click.option("--other-data", is_flag=True, help="Go on although the dataset is another one.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def train(
    file: Path | None,
    sets: tuple[str, ...],
    resume: bool,
    other_data: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Fine-tune a model with LoRA on a prepared dataset; under torchrun on several devices."""
    from premask.errors import UsageError

    try:
        from premask_trainer.config import config_from
        from premask_trainer.progress import summary_lines
        from premask_trainer.train import train
    except ImportError as error:
        raise UsageError(
            f"the trainer needs packages that are not installed ({error}); `pip install premask[train]` installs them"
        ) from error
    summary = train(config_from(options, file, sets), resume=resume, other_data=other_data, quiet=quiet or as_json)
    if as_json and summary:  # of several ranks only the first has one
        click.echo(json.dumps(summary, sort_keys=True))
    elif summary and not quiet:
        click.echo("\n".join(summary_lines(summary)))
