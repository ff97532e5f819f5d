"""`premask view`, `premask markers` and `premask explain`: what to look at."""

from pathlib import Path

import click

from premask.cli.options import FOLDER


@click.command(short_help="Show the tokens of prepared packs, trained and masked.")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option("--split", default="train", show_default=True, help="Split to look into.")
@click.option("--pack", type=click.IntRange(min=0), metavar="N", help="Show pack N; by default the first.")
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


@click.command(short_help="Show what was discovered of a chat template.")
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


@click.command(short_help="Follow one source row through every stage.")
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
