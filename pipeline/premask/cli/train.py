"""`premask train`: a thin way into `premask_trainer`, which is imported only here."""

import json
from pathlib import Path
from typing import Any

import click

from premask.cli.options import described


class TrainCommand(click.Command):
    """`train`, whose help ends with the options of its config."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from premask_trainer.config import TrainConfig

        with formatter.section("Options of the config, for --set and the keys of a config file"):
            formatter.write_dl([(name, described(field)) for name, field in TrainConfig.model_fields.items()])


@click.command(cls=TrainCommand, short_help="Fine-tune a model on a prepared dataset (QLoRA).")
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
