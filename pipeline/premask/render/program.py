"""A chat template as a program that grows by tracing: path by path, as the data asks for it.

For each shape of conversations there is a decision tree. Its inner nodes are questions that the template asked, its
leaves are fills: rows of pieces, literals and derivations. A conversation whose answers lead to a leaf is rendered by
joining the leaf's pieces; any other is traced once, checked against Jinja's own rendering, and becomes a new leaf. That
is exact because a template is deterministic in what it can observe, and all of that is a question (`values.py`).

The idea is a tracing compiler in the small; compare the guards and side exits of trace-based just-in-time compilers
(https://doi.org/10.1145/1542476.1542528).
"""

import datetime
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import jinja2
import numpy as np

from premask.dtypes import Int64Array, offsets_of, ranges
from premask.errors import DataError
from premask.read import Conversation, Conversations
from premask.render.bounds import OutOfTime, TooMuch, begin
from premask.render.environment import compile_template
from premask.render.expression import Expr, TooLarge, compile_fill
from premask.render.recording import Recorder, Untraceable
from premask.render.shape import Path, copied, field_paths, flatten
from premask.render.tracing import Piece, TracingEnvironment
from premask.render.tree import Leaf, Tree
from premask.render.values import TStr

MAX_LEAVES = 10_000
"""Paths kept in memory; conversations of further paths are traced each for itself."""

AUDIT_EVERY = 1000
"""One row in so many that were rendered by a fill is also rendered by Jinja and compared."""

ENDURED = 8
"""Rows of a batch on which a template may go beyond its bounds; each of them takes seconds."""

_NOTHING: tuple[str, tuple[int, ...]] = ("", ())

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a conversation has no rendering."""

    reason: str
    detail: str


class Unproven(Exception):
    """Raised by an analysis: this rendering's origin or turns are not certain."""

    reason = "mask_unproven"


class NotRendered(Unproven):
    """Raised by an analysis: the template leaves out what the conversation holds."""

    reason = "not_rendered"


@dataclass(frozen=True, slots=True)
class Rendering:
    """One traced rendering, as an analysis sees it. Questions asked of its pieces become part of the path."""

    conversation: Conversation
    pieces: list[Piece]
    paths: list[Path]
    """Where every field stands."""
    prompt: Callable[[int], list[Piece] | None]
    """The first n messages rendered with the generation prompt; None where the template refuses them."""
    ask: Callable[[int], bool]
    """Whether field number n holds anything: a question like any other."""
    questions: Mapping[Expr, Any]
    """What has been asked so far, with the answers; grows with further questions."""
    shape: Hashable
    """The conversation's shape (`shape.py`)."""
    opened: Mapping[Expr, Hashable]
    """The structures of the nested fields that the template looked into; may grow as well."""


@dataclass(frozen=True, slots=True)
class Rendered(Generic[A]):
    """A rendered batch of N conversations: its texts, one byte apart, and all their pieces in one row."""

    texts: list[str]
    """One text a conversation, empty where it failed."""
    paths: list[A]
    """What is known of every path that was taken."""
    which: Int64Array
    """`[N]` the path of every conversation, -1 where it failed."""
    first: Int64Array
    """`[N + 1]` the first piece of every text. Its last one is followed by the byte behind it, counted as a piece."""
    borders: Int64Array
    """`[P + 1]` where every piece begins, in UTF-8 bytes over the batch; and where one more would."""
    failures: dict[int, Failure]


class Program(Generic[A]):
    """A chat template with the paths that the data has asked for so far.

    `analyse` turns a rendering into the pieces of a leaf (the rendering's own, cut where it likes) and whatever it
    knows of them; it may ask questions of traced pieces, and it may raise Unproven.
    """

    def __init__(
        self,
        source: str,
        variables: Mapping[str, Any],
        date: datetime.date,
        analyse: Callable[[Rendering], tuple[list["str | TStr"], A]],
    ) -> None:
        self.variables = {"documents": None, "tools": None, "add_generation_prompt": False, **variables}
        self.plain = compile_template(source, date)
        self.traced = TracingEnvironment(date).compile_traced(source)
        self.analyse = analyse
        self.trees: dict[Hashable, Tree[A]] = {}
        self.leaves = 0
        self.rendered = 0
        self.endured = 0

    def render(self, conversations: Sequence[Conversation]) -> Rendered[A]:
        """Render a batch. DataError where the template goes beyond its bounds on row after row."""
        self.endured = 0
        batch = Conversations.of(conversations)
        texts: list[str] = []
        sizes: list[int] = []
        which: list[int] = []
        leaves: list[Leaf[A]] = []
        numbers: dict[int, int] = {}
        failures: dict[int, Failure] = {}
        for row, plain in enumerate(batch.plain):
            key, fields = plain or flatten(batch[row])
            leaf, (text, values) = self._fill(key, fields, batch, row)
            texts.append(text)
            sizes += values
            number = numbers.get(id(leaf), -1)
            if number < 0:
                if isinstance(leaf, Failure):
                    failures[row] = leaf
                else:
                    number = numbers[id(leaf)] = len(leaves)
                    leaves.append(leaf)
            which.append(number)
        taken = np.array(which, np.int64)
        self._audit(batch, texts, np.flatnonzero(taken >= 0))
        first, borders = _laid_out([leaf.sizes for leaf in leaves], taken, np.array(sizes, np.int64))
        return Rendered(texts, [leaf.analysis for leaf in leaves], taken, first, borders, failures)

    def render_plain(self, conversation: Conversation, **variables: Any) -> str:
        """One conversation as Jinja renders it. Raises what the template raises."""
        begin(self.plain, conversation)
        return self.plain.render(
            **{
                **self.variables,
                **variables,
                **copied(conversation.template_args),
                "messages": copied(conversation.messages),
                "tools": copied(conversation.tools),
            }
        )

    def _audit(self, batch: Conversations, texts: Sequence[str], rows: Int64Array) -> None:
        """Compare every `AUDIT_EVERY`th of the `rows` that were rendered with Jinja's own rendering."""
        for row in rows[AUDIT_EVERY - 1 - self.rendered % AUDIT_EVERY :: AUDIT_EVERY].tolist():
            try:
                expected = self.render_plain(batch[row])
            except jinja2.TemplateError as error:
                expected = f"a template error: {error}"
            if texts[row] != expected:
                raise AssertionError("bug in premask: a traced rendering differs from Jinja's")
        self.rendered += len(rows)

    def _fill(
        self, key: Hashable, fields: Sequence[Any], batch: Conversations, row: int
    ) -> "tuple[Leaf[A] | Failure, tuple[str, tuple[int, ...]]]":
        """The leaf of a conversation of shape `key`; its text, and the bytes of its pieces that are no literals."""
        tree = self.trees.get(key)
        try:
            for leaf in tree.hot if tree else ():
                if filled := leaf.fill(fields):
                    return leaf, filled
            found = (tree.descend(fields) if tree else None) or self._learn(batch[row], key)
            filled = found.fill(fields) if isinstance(found, Leaf) else _NOTHING
        except (TooLarge, UnicodeEncodeError):  # a template may write half a character
            filled = None
        if filled is None:  # or ask for what does not even equal itself, which is no number
            found = self._learn(batch[row], None)
            filled = found.fill(fields) if isinstance(found, Leaf) else None
        return found, filled or _NOTHING

    def _learn(self, conversation: Conversation, key: Hashable) -> "Leaf[A] | Failure":
        """Trace a conversation to a new leaf of the tree of its shape; without `key` it is its leaf alone."""
        try:
            text = self.render_plain(conversation)
            text.encode()
        except (MemoryError, OutOfTime):
            raise
        except TooMuch as error:
            return self._endure(error)
        except Exception as error:  # a template may raise anything
            return Failure("template_error", _said(error))
        lost = ""
        # What cannot be replayed may be good for this conversation alone.
        for recording in (True, False) if key is not None else (False,):
            recorder = Recorder(recording)
            try:
                leaf = self._trace(conversation, recorder, text)
            except Untraceable as error:
                lost = str(error)
                continue
            except Unproven as error:
                return Failure(error.reason, str(error))
            if recording and self.leaves < MAX_LEAVES:
                self.trees.setdefault(key, Tree()).insert(recorder.guards, leaf)
                self.leaves += 1
            return leaf
        return Failure("mask_unproven", f"the origin of the text is lost by what the template does: {lost}")

    def _endure(self, error: TooMuch) -> Failure:
        self.endured += 1
        if self.endured > ENDURED:
            raise DataError(
                f"chat template: {error}, on {self.endured} of the rows that are rendered together; "
                "give another template with --template"
            )
        return Failure("template_error", _said(error))

    def _trace(self, conversation: Conversation, recorder: Recorder, text: str) -> Leaf[A]:
        try:
            trace = self.traced.render(recorder, conversation, self.variables)
        except (MemoryError, OutOfTime):
            raise
        except Exception as error:
            raise Untraceable(f"the template cannot be followed: {_said(error)}") from error
        if trace.text != text:
            raise Unproven("the traced rendering differs from Jinja's: please report this template")

        def prompt(messages: int) -> list[Piece] | None:
            arguments = {**conversation.template_args, "add_generation_prompt": True}
            beginning = Conversation(conversation.messages[:messages], conversation.tools, arguments)
            try:
                return self.traced.render(recorder, beginning, self.variables).pieces
            except (MemoryError, OutOfTime):
                raise
            except Exception:
                return None

        def ask(field: int) -> bool:
            _, fields = flatten(conversation)
            return bool(recorder.ask(("bool", ("field", field)), bool(fields[field])))

        rendering = Rendering(
            conversation=conversation,
            pieces=trace.pieces,
            paths=field_paths(conversation),
            prompt=prompt,
            ask=ask,
            questions=recorder.guards,
            shape=flatten(conversation)[0],
            opened=recorder.opened,
        )
        pieces, analysis = self.analyse(rendering)
        sizes = np.array([*(len(p.encode()) if isinstance(p, str) else -1 for p in pieces), 1], np.int64)
        if not recorder.recording:
            values = tuple(len(p.value.encode()) for p in pieces if isinstance(p, TStr))
            return Leaf(lambda fields: (text, values), sizes, analysis)
        fill = compile_fill([p if isinstance(p, str) else p.expr for p in pieces], recorder.guards)
        return Leaf(fill, sizes, analysis)


def _laid_out(leaves: Sequence[Int64Array], which: Int64Array, values: Int64Array) -> tuple[Int64Array, Int64Array]:
    """`Rendered.first` and `borders` of rows that took the leaves `which` `[N]`; -1 has nothing but the byte behind.

    `leaves` are the sizes of their pieces, `values` those of all pieces that are no literals, row by row.
    """
    table = np.concatenate([*leaves, np.ones(1, np.int64)])
    counts = np.array([*map(len, leaves), 1], np.int64)
    pieces = counts[which]
    lengths = table[ranges(offsets_of(counts)[:-1][which], pieces)]
    lengths[lengths < 0] = values
    return offsets_of(pieces), offsets_of(lengths)


def _said(error: Exception) -> str:
    name = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
    return f"{name}{error}"
