"""Chat templates by name, for tokenizers that bring none (or the wrong one): the Jinja files in `templates/`.

Each renders with what transformers gives to templates, writes BOS and EOS itself, accepts contents as strings or as
lists of text parts, and refuses by `raise_exception` what its layout has no place for, rather than leave it out in
silence. BOS stands where the style's own models have it: first in `llama-3`, `alpaca` and `plain` (where the tokenizer
names one), never in `chatml` and `zephyr`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Templates:
    """The Jinja sources that a tokenizer's conversations are rendered with."""

    default: str
    tool_use: str | None = None
    """For conversations that have tools; None where these take the default as well."""

    @property
    def source(self) -> str:
        """All that may be rendered, for hashing and for looking up which tokens it writes."""
        return self.default if self.tool_use is None else f"{self.default}\n{self.tool_use}"

    def as_transformers(self) -> str | dict[str, str]:
        """What a tokenizer of transformers has as its `chat_template`."""
        return self.default if self.tool_use is None else {"default": self.default, "tool_use": self.tool_use}


def resolve_templates(argument: str | None, own: Mapping[str, str]) -> Templates:
    """What to render with: `argument` (a name, or the path of a file) or else the tokenizer's `own` templates by name.

    As in transformers, `tool_use` is taken for conversations with tools, `default` for the others; one named by
    `argument` for all. The tokenizer's own names win over ours, names over files; write `./chatml` for the file.
    Raises UsageError where nothing is given, where the file is missing, or where it is not UTF-8 text.
    """
    if argument is None and "default" in own:
        return Templates(own["default"], own.get("tool_use"))
    if argument is None and own:
        raise UsageError(
            f"The tokenizer has chat templates called {', '.join(sorted(own))}, and none that is the default. "
            "Name one with --template"
        )
    if argument is None:
        raise UsageError(
            "The tokenizer has no chat template. Name one with --template: "
            f"{', '.join(TEMPLATE_NAMES)}, or the path of a Jinja file."
        )
    if argument in own:
        return Templates(own[argument])
    return Templates(named_template(argument) if argument in TEMPLATE_NAMES else _read(argument))


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
