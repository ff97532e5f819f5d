"""What several commands share: kinds of parameters, and the help of options that a model of pydantic holds."""

import datetime
from pathlib import Path
from typing import Any

import click

FOLDER = click.Path(file_okay=False, path_type=Path)
"""A folder, which need not be there yet."""


def described(field: Any) -> str:
    """The help of an option that is a pydantic field: its choices, what it does, its default."""
    choices = [str(choice) for choice in getattr(field.annotation, "__args__", ()) if isinstance(choice, str)]
    plain = isinstance(field.default, str | int | float | datetime.date)  # not a list, an object, or nothing
    default = f" [default: {str(field.default).replace('True', 'true').replace('False', 'false')}]" if plain else ""
    return (f"{'|'.join(choices)}: " if choices else "") + (field.description or "").replace("\n", " ") + default
