"""`premask remask`."""

import json
from pathlib import Path
from typing import Any

import click

from premask.cli.options import FOLDER
from premask.errors import UsageError


@click.command(short_help="Mask a dataset that is tokenized already.")
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

    if (instruction_part is None) != (response_part is None):
        raise UsageError("Give both --instruction-part and --response-part, or neither to have them found.")
    parts = parts_of(None, instruction_part, response_part)
    masking = masking_of(tokenizer, template, parts, mask=mask, last_response_only=last_response_only)
    counts = remask(dataset, out, masking, no_response)
    if as_json:
        click.echo(json.dumps(asdict(counts), sort_keys=True))
    elif not quiet:
        click.echo("\n".join(told(counts)))
