"""The command line: options in, exit code out. Whatever is heavy is imported inside the command that needs it.

Exit codes: 0 done; 1 the data or the dataset is at fault; 2 the call is wrong; 3 the machine failed; 70 a bug in
premask; 130 interrupted (Ctrl-C); 143 ended by SIGTERM. Results go to standard output, all else to standard error.
"""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

import click

from premask.cli import check, prepare, remask, show, train

INTERRUPTED = 128 + signal.SIGINT


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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}, no_args_is_help=False)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Print the version."
)
def premask() -> None:
    """Prepare chat data for supervised fine-tuning: rendered, tokenized, masked per turn, packed into Arrow shards."""


for _command in (
    prepare.prepare,
    prepare.recipe,
    show.view,
    show.markers,
    show.explain,
    check.verify,
    check.repair,
    remask.remask,
    train.train,
):
    premask.add_command(_command)
