"""The nested parts of a recipe: a source with options of its own, filters, the stages of a curriculum."""

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from premask.recipe.values import (
    MAX_REPEAT,
    Arguments,
    ControlTokens,
    Count,
    Mask,
    Name,
    Names,
    Rising,
    Shape,
    ShareRange,
    Straddle,
    Trained,
    Turns,
    Which,
)
from premask.recipe.wording import TAGS

STRICT = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)


class Sparse(BaseModel):
    """A part of a recipe whose values that are not stated are not written either."""

    model_config = STRICT

    @model_serializer(mode="wrap")
    def _stated(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value is not None}


class SourceOptions(Sparse):
    """One source, with options of its own; the recipe's hold for those that it does not state."""

    path: Name
    """File, folder, glob or name, as in the short form."""

    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Share of the training examples that come from this source, relative to the weights of the others. The mix is
    the largest one that the sources allow, each of their examples used at most `repeat` times."""

    repeat: Annotated[int, Field(ge=1, le=MAX_REPEAT)] | None = None
    """How often every example is used (with weights: at most); in validation always once."""

    limit: Count | None = None
    format: Shape | None = None
    columns: Names | None = None
    message_keys: Names | None = None
    role_map: Names | None = None
    drop_nulls: bool | None = None
    template_args: Arguments | None = None
    """Laid over the recipe's own, key by key."""

    train_on: Which | None = None
    terminator: Which | None = None
    reasoning: Trained | None = None
    tool_calls: Trained | None = None
    straddle: Straddle | None = None
    control_tokens: ControlTokens | None = None
    turns: Turns | None = None
    mask: Mask | None = None


class Filters(Sparse):
    """Which source rows are used; the others are rejected, each with its reason."""

    min_turns: Count | None = None
    """Fewest assistant turns of a row."""

    max_turns: Count | None = None
    """Most assistant turns of a row."""

    min_tokens: Count | None = None
    """Fewest tokens of a row's examples."""

    max_tokens: Count | None = None
    """Most tokens of a row's examples."""

    scripts: dict[Name, ShareRange] | None = None
    """Unicode scripts by name, such as Latin or Han, with the least share, or [least, most], of the characters of a
    row's messages; characters of no script of their own (digits, punctuation, spaces) are not counted."""

    expression: Name | None = None
    """A condition in the SQL of polars over a row's `length`, `supervised`, `turns` and `source`."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for what in ("turns", "tokens"):
            least, most = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if least and most and least > most:
                raise ValueError(f"expected min_{what} up to max_{what}")
        return self


class Curriculum(BaseModel):
    """In which stages examples come; no pack holds examples of two stages."""

    model_config = STRICT

    by: Literal["length", "turns"]
    """What makes an example hard: its tokens, or its assistant turns."""

    up_to: Rising
    """The most that each stage allows, rising; one more stage without a limit comes last."""

    schedule: Literal["rest", "everything"] = "rest"
    """`rest`: simple first, then the rest, so that every example comes once. `everything`: simple first, then
    everything, so that simple examples come again in every later stage."""


def _form(value: object) -> str:
    return TAGS[1] if isinstance(value, dict | SourceOptions) else TAGS[0]


def _short(value: str | SourceOptions) -> str | SourceOptions:
    """A source that states nothing but its path is its path."""
    return value.path if isinstance(value, SourceOptions) and value == SourceOptions(path=value.path) else value


SourceEntry: TypeAlias = Annotated[
    Annotated[Name, Tag(TAGS[0])] | Annotated[SourceOptions, Tag(TAGS[1])],
    Discriminator(_form),
    AfterValidator(_short),
]
