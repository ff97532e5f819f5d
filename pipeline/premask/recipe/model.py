"""All that decides which bytes are prepared from which sources, as validated models.

Nothing outside the recipe and the bytes of its inputs may change the bytes of the result, so whatever shapes the result
is a field here, and whatever does not (workers, progress, encoder) is not. Every problem of a recipe is named at once,
in one `UsageError`, with the place each value came from.
"""

import datetime
import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ModelWrapValidatorHandler, ValidationError, ValidationInfo, model_validator

from premask.errors import UsageError
from premask.recipe.parts import STRICT, Curriculum, Filters, SourceEntry, SourceOptions
from premask.recipe.values import (
    MAX_LENGTH,
    Arguments,
    ControlTokens,
    Count,
    Date,
    Mask,
    Name,
    Names,
    Shape,
    Straddle,
    Trained,
    Turns,
    Which,
)
from premask.recipe.wording import explain


class Recipe(BaseModel):
    """All that decides which bytes are prepared from which sources.

    Raises `UsageError` (not pydantic's `ValidationError`) that names every problem.
    """

    model_config = STRICT

    sources: Annotated[list[SourceEntry], Field(min_length=1)]
    """What to prepare, in this order: paths, or objects of a path and options of its own. Relative paths count from
    the working directory."""

    sources_order: Literal["matters", "sorted"] = "matters"
    """Whether rows are numbered in the order in which sources are listed, or in that of their content's hash."""

    tokenizer: Name
    """Folder with tokenizer.json and tokenizer_config.json, or the name of a repository (ORG/NAME)."""

    template: Name | None = None
    """Chat template: a file or a named template; by default the tokenizer's own."""

    template_args: Arguments = {}
    """Further variables for the template, such as enable_thinking; a row's own win."""

    format: Shape = "auto"
    """Shape of the rows; `auto` finds it out per source."""

    columns: Names = {}
    """Where a file keeps what its format has under other names: path in the row by column, {messages: data.turns}."""

    message_keys: Names = {}
    """The same for the keys of messages: written name by known key, such as {content: utterance}."""

    role_map: Names = {}
    """Known role by the role as it is written, such as {bot: assistant}."""

    drop_nulls: bool = False
    """Remove null values inside of rows, with their keys: tables write them where a row had no such key."""

    max_length: Annotated[int, Field(ge=2, le=MAX_LENGTH)] = 4096
    """Length of a pack in tokens; no example is longer."""

    overflow: Literal["drop", "split", "truncate"] = "drop"
    """What becomes of a conversation that is longer: rejected, made into several at the borders of its turns, or cut
    behind the last trained turn that fits whole."""

    trim_tail: bool = True
    """Drop the tokens behind an example's last trained one, which cannot affect the loss."""

    limit: Count | None = None
    """Only the first so many rows of every source."""

    duplicates: Literal["keep", "drop"] = "keep"
    """What becomes of a conversation that was there before, in any source."""

    filters: Filters = Filters()
    """Which source rows are used: min_turns, max_turns, min_tokens, max_tokens, scripts, expression."""

    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the conversations that make the split `validation`, drawn by their hash."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the order of the packs, and of what is drawn where sources have weights."""

    order: Literal["shuffled", "as_is", "curriculum"] = "shuffled"
    """In which order packs come: by the seed, by their first example, or in the stages of `curriculum`."""

    curriculum: Curriculum | None = None
    """The stages of order=curriculum: by (length or turns), up_to, schedule."""

    date: Date = datetime.date(2025, 1, 1)
    """The day that `strftime_now` shows to templates: pinned, so that the same inputs give the same bytes."""

    train_on: Which = "all"
    """Which assistant turns are trained; a message's own `train` or `weight` wins."""

    terminator: Which = "all"
    """On which turns the terminator is trained."""

    reasoning: Trained = "train"
    """The thinking part of a turn."""

    tool_calls: Trained = "train"
    """The tool-call part of a turn."""

    straddle: Straddle = "mask"
    """A token that holds bytes from both sides of a span's start or end."""

    control_tokens: ControlTokens = "escape"
    """Message text that spells a control token: encoded as plain text, or the row rejected, or taken as control."""

    turns: Turns = "together"
    """One example per conversation, or one per assistant turn with its context as at inference."""

    mask: Mask = "sampled"
    """What is trained: what the model would emit, or what the template's {% generation %} tags enclose."""

    stop_tokens: list[Name] = []
    """Tokens that end a turn although the template writes them only as the next role's header."""

    pack: Literal["best_fit", "sequential", "none"] = "best_fit"
    """How examples are packed; `none` makes every example a pack of its own."""

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        if self.order == "curriculum" and self.curriculum is None:
            raise ValueError("curriculum: missing; order=curriculum expects `by` and `up_to` there")
        if self.curriculum is not None and self.order != "curriculum":
            raise ValueError(f"order: expected 'curriculum' beside the option curriculum, found {self.order!r}")
        weights = [isinstance(source, SourceOptions) and source.weight is not None for source in self.sources]
        if any(weights) and not all(weights):
            raise ValueError(
                f"sources[{weights.index(False)}].weight: missing; weights are relative to each other: "
                "give every source one, or none"
            )
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _name_every_problem(cls, data: Any, build: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        try:
            return build(data)
        except ValidationError as error:
            raise UsageError(explain(error, (info.context or {}).get("origins", {}), OPTIONS)) from None

    def source(self, number: int) -> SourceOptions:
        """One source with every option as it holds for it: its own, or the recipe's."""
        entry = self.sources[number]
        own = entry if isinstance(entry, SourceOptions) else SourceOptions(path=entry)
        inherited = {name: getattr(self, name) for name in SourceOptions.model_fields if name in Recipe.model_fields}
        stated = {name: value for name in SourceOptions.model_fields if (value := getattr(own, name)) is not None}
        arguments = {**self.template_args, **(own.template_args or {})}
        return SourceOptions(**({"repeat": 1} | inherited | stated | {"template_args": arguments}))

    def masking(self, number: int) -> "Recipe":
        """What becomes of the rows of one source until they are examples, and nothing else.

        Two sources for which it is equal have one masker.
        """
        source = self.source(number)
        own = {name: getattr(source, name) for name in _MASKING if name in SourceOptions.model_fields}
        values = {name: getattr(self, name) for name in _MASKING} | own
        return Recipe(**values, sources=["-"], filters=Filters(scripts=self.filters.scripts))

    @property
    def compares_conversations(self) -> bool:
        """Whether conversations are told apart by their hashes: duplicates, a validation split and weights need it."""
        weighted = any(isinstance(source, SourceOptions) and source.weight is not None for source in self.sources)
        return self.duplicates == "drop" or self.validation > 0 or weighted

    def with_sources(self, order: Sequence[int]) -> "Recipe":
        """The same recipe with its sources in another order: `order` holds their numbers now."""
        return self.model_copy(update={"sources": [self.sources[number] for number in order]})

    def resolved(self) -> dict[str, Any]:
        """Every option with its value, defaults included, as JSON types: `Recipe(**recipe.resolved()) == recipe`."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON of `resolved()`."""
        text = json.dumps(self.resolved(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


_MASKING = (
    *("tokenizer", "template", "template_args", "date", "stop_tokens", "max_length", "overflow", "trim_tail"),
    *("train_on", "terminator", "reasoning", "tool_calls", "straddle", "control_tokens", "turns", "mask"),
)

OPTIONS = {
    "": list(Recipe.model_fields),
    "sources": list(SourceOptions.model_fields),
    "filters": list(Filters.model_fields),
    "curriculum": list(Curriculum.model_fields),
}
"""Every option by the part of the recipe that it belongs to."""
