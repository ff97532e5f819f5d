"""Chat templates by name, for tokenizers that bring none (or the wrong one): the Jinja files in `templates/`.

Each renders with what transformers gives to templates, writes BOS and EOS itself, accepts contents as strings or as
lists of text parts, and refuses by `raise_exception` what its layout has no place for, rather than leave it out in
silence. BOS stands where the style's own models have it: first in `llama-3`, `alpaca` and `plain` (where the tokenizer
names one), never in `chatml` and `zephyr`.
"""

from importlib.resources import files
from pathlib import Path

from premask.errors import UsageError

TEMPLATE_NAMES = ("alpaca", "chatml", "llama-3", "plain", "zephyr")
"""What `--template` accepts besides a file."""


def named_template(name: str) -> str:
    """The Jinja source of the template called `name`; UsageError where there is none of that name."""
    if name not in TEMPLATE_NAMES:
        raise UsageError(f"--template {name}: expected a file or one of {', '.join(TEMPLATE_NAMES)}, found neither.")
    return (files("premask.render") / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def resolve_template(argument: str | None, own: str | None) -> str:
    """The Jinja source to render with: `argument` (a name, or the path of a file) or else `own`, the tokenizer's.

    A name wins over a file of the same name in the working folder; write `./chatml` for the file.
    Raises UsageError where neither is given, where the file is missing, or where it is not UTF-8 text.
    """
    if argument in TEMPLATE_NAMES:
        return named_template(argument)
    if argument is not None:
        return _read(argument)
    if own is not None:
        return own
    raise UsageError(
        "The tokenizer has no chat template. Name one with --template: "
        f"{', '.join(TEMPLATE_NAMES)}, or the path of a Jinja file."
    )


def _read(argument: str) -> str:
    path = Path(argument).expanduser()
    if not path.is_file():
        return named_template(argument)  # raises, and lists the names
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: byte {error.start}: expected UTF-8, found {error.reason}. Save it as UTF-8."
        ) from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}). Give a readable Jinja file.") from None
