"""Conversations in, masked examples out: rendering, encoding and masking of one batch.

    conversations -> Program (text, spans of pieces) -> Encoder (ids, bytes of every token)
                  -> control tokens where none are due? encode those rows again, escaped
                  -> spans of bytes -> spans of tokens -> proof -> Examples

Everything behind the rendering works on the batch's flat arrays. A row that cannot be proven is rejected; its
neighbours never notice.
"""

import datetime
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from premask.dtypes import Examples, Float32Array, Int32Array, offsets_of, slices, take
from premask.encode.encoder import Encoded, Encoder
from premask.encode.escape import Escaper
from premask.mask.choices import Choices, Path, choose
from premask.mask.columns import Columns
from premask.mask.controls import Vocabulary, unexpected
from premask.mask.explain import Explanation, ask, labels, stretches
from premask.mask.grammar import discover
from premask.mask.search import differing, haystack, search
from premask.mask.separate import Separated, separated
from premask.mask.spans import ByteSpans, TokenSpans, to_tokens
from premask.mask.turns import Turns, find_turns
from premask.read import Conversation
from premask.render.forms import adapt, discover_forms
from premask.render.program import Failure, Program, Rendered, Rendering
from premask.render.values import TStr

MASK_RULES = 1
"""Version of the rules by which tokens are trained; any change of a mask changes it."""


@dataclass(frozen=True, slots=True)
class Masked:
    """A masked batch."""

    examples: Examples
    """The rows that are kept, in order; `rows` counts within the batch."""
    failures: dict[int, Failure]
    """Why any other row is not."""
    counts: Counter[str]
    """What happened on the way: straddling tokens, escaped rows and the like."""


class Masker:
    """A chat template, a tokenizer and the choices of a recipe, ready for batches of conversations."""

    def __init__(
        self,
        template: str,
        variables: Mapping[str, Any],
        date: datetime.date,
        encoder: Encoder,
        vocabulary: Vocabulary,
        choices: Choices,
    ) -> None:
        self.encoder = encoder
        self.vocabulary = vocabulary
        self.choices = choices
        self._program = partial(Program, template, variables, date)
        self.program: Program[Path] = self._program(self._analyse)
        forms = discover_forms(self.program.render_plain)
        self.grammar = discover(self._program, vocabulary, encoder, forms)
        size = encoder.vocabulary_size
        self._controls = vocabulary.ids(size)
        self._tags = Vocabulary({}, vocabulary.tags, frozenset()).ids(size)
        self._escaper = Escaper(encoder, [*vocabulary.controls, *vocabulary.tags])

    def _analyse(self, rendering: Rendering) -> tuple[list[str | TStr], Path]:
        pieces, _, path = self._analysed(rendering)
        return pieces, path

    def _analysed(self, rendering: Rendering) -> tuple[list[str | TStr], Turns, Path]:
        split = self.choices.reasoning == "mask" or self.choices.tool_calls == "mask"
        pieces, turns = find_turns(rendering, self.vocabulary, self.grammar.tags if split else None)
        conversation = rendering.conversation
        roles = [message["role"] for message in conversation.messages]
        texts = [i for i, piece in enumerate(pieces) if isinstance(piece, TStr)]
        path = choose(turns, texts, roles, self.grammar.can_search(conversation), self.choices)
        return pieces, turns, path

    def mask(self, conversations: Sequence[Conversation]) -> Masked:
        """Render, encode and mask a batch."""
        if self.choices.turns == "together":
            return self._mask(conversations)
        parts = [part for row, c in enumerate(conversations) for part in separated(row, c, self.choices.train_on)]
        masked = self._mask([part.conversation for part in parts])
        return _regrouped(masked, parts, conversations)

    def _mask(self, conversations: Sequence[Conversation]) -> Masked:
        counts: Counter[str] = Counter()
        rendered = self.program.render([adapt(c, self.grammar.forms) for c in conversations])
        failures = dict(rendered.failures)
        encoded = self.encoder.encode(rendered.texts)
        columns = Columns(rendered)
        if self.choices.control_tokens != "allow":
            encoded = self._escaped(rendered, encoded, columns, failures, counts)
        self._prove(rendered, encoded, columns, failures, counts)
        spans, weights = columns.spans(conversations)
        tokens = to_tokens(encoded, columns.sizes, spans, self.choices.straddle)
        examples = _examples(conversations, encoded, spans, tokens, weights, columns, failures)
        self._count(encoded, tokens, columns, counts)
        return Masked(examples, failures, counts)

    def explain(self, conversation: Conversation) -> Explanation:
        """One conversation, with the reason for every stretch of its text."""
        adapted = adapt(conversation, self.grammar.forms)
        found: list[tuple[Sequence[str | TStr], Turns, Path]] = []
        questions: Mapping[Any, Any] = {}

        def analyse(rendering: Rendering) -> tuple[list[str | TStr], Path]:
            nonlocal questions
            questions = rendering.questions
            pieces, turns, path = self._analysed(rendering)
            found.append((pieces, turns, path))
            return pieces, path

        self._program(analyse).render([adapted])
        masked = self._mask([conversation])
        rejected = masked.failures.get(0)
        pieces, turns, path = found[0] if found else ([], None, None)
        roles = [message["role"] for message in adapted.messages]
        weights = conversation.weights or [None] * len(roles)
        searched = path is not None and path.searchable
        return Explanation(
            stretches=stretches(pieces, turns, path, roles, weights) if turns and path else [],
            questions=[ask(question, answer) for question, answer in questions.items()],
            proof="proven by provenance and by search" if searched else "proven by provenance and its bytes",
            ids=masked.examples.ids,
            labels=labels(masked.examples.ids, masked.examples.spans),
            rejected=f"{rejected.reason}: {rejected.detail}" if rejected else "",
        )

    def _escaped(
        self,
        rendered: Rendered[Path],
        encoded: Encoded,
        columns: Columns,
        failures: dict[int, Failure],
        counts: Counter[str],
    ) -> Encoded:
        """Encode again the rows whose messages spell control tokens."""
        due, texts = columns.controls()
        stretches, ends = columns.turns()
        hit = np.flatnonzero(unexpected(encoded, due, stretches, ends, self._controls, self._tags))
        again: dict[int, tuple[Int32Array, Int32Array, Int32Array]] = {}
        for row in map(int, hit):
            if row in failures:
                continue
            if self.choices.control_tokens == "reject":
                failures[row] = Failure(
                    "control_token", "expected messages without control tokens, found one spelt out"
                )
                continue
            text = rendered.texts[row]
            first, last = np.searchsorted(due.rows, (row, row + 1))
            own = [(int(due.starts[i]), texts[i]) for i in range(first, last)]
            within = (np.searchsorted(stretches.rows, row), np.searchsorted(stretches.rows, row + 1))
            turns = [(int(stretches.starts[i]), int(ends[i])) for i in range(*within)]
            result = self._escaper.encode(text, self._with_tags(text, own, turns))
            if result is None:
                failures[row] = Failure(
                    "control_token", "a message spells a control token and holds a private character"
                )
            else:
                again[row] = result
        counts["escaped_rows"] += len(again)
        return _replaced(encoded, again)

    def _with_tags(self, text: str, own: list[tuple[int, str]], turns: list[tuple[int, int]]) -> list[tuple[int, str]]:
        """The template's own control tokens, and the tags that the assistant's text holds between them."""
        raw = text.encode()
        tags = Vocabulary({}, self.vocabulary.tags, frozenset())
        taken = {start for start, _ in own}
        found = list(own)
        for start, end in turns:
            stretch = raw[start:end].decode()
            for at, tag in tags.find_all(stretch):
                place = start + len(stretch[:at].encode())
                if place not in taken:
                    found.append((place, tag))
        return sorted(found)

    def _prove(
        self,
        rendered: Rendered[Path],
        encoded: Encoded,
        columns: Columns,
        failures: dict[int, Failure],
        counts: Counter[str],
    ) -> None:
        """Reject the rows in which the search by markers finds other turns than provenance."""
        searchable = np.zeros(len(rendered.texts), bool)
        for group in rendered.groups:
            searchable[group.rows] = group.analysis.searchable
        counts["rows_searched"] += int(searchable.sum())
        if not searchable.any():
            return
        hay = haystack(rendered.texts, encoded.ids, encoded.offsets, encoded.starts)
        inside, _ = columns.texts(hay.bases)
        starts, ends, aside = search(hay, self.grammar.markers, inside)
        counts["markers_in_messages"] += aside
        turns, turn_ends = columns.turns()
        expected = hay.bases[turns.rows] + turns.starts, hay.bases[turns.rows] + turn_ends
        for row in np.flatnonzero(differing((starts, ends), expected, hay.bases) & searchable):
            failures.setdefault(
                int(row),
                Failure(
                    "mask_unproven",
                    "the search by markers and the provenance of the text do not agree on this row's turns; "
                    "`premask explain` shows both",
                ),
            )

    def _count(self, encoded: Encoded, tokens: TokenSpans, columns: Columns, counts: Counter[str]) -> None:
        counts["straddle_start"] += int(tokens.cut_at_start.sum())
        counts["straddle_end"] += int(tokens.cut_at_end.sum())
        for group in columns.groups:
            for name, count in group.analysis.counts.items():
                counts[name] += count * len(group.rows)
        counts["rows_by_offsets"] += encoded.by_offsets


def _replaced(encoded: Encoded, again: dict[int, tuple[Int32Array, Int32Array, Int32Array]]) -> Encoded:
    """`encoded` with some rows encoded anew."""
    if not again:
        return encoded
    rows = len(encoded.offsets) - 1
    columns: list[list[Int32Array]] = [[], [], []]
    done = 0
    for row in [*sorted(again), rows]:
        a, b = encoded.offsets[done], encoded.offsets[row]
        for column, old, new in zip(
            columns, (encoded.ids, encoded.starts, encoded.ends), again.get(row, ()) or ((),) * 3, strict=True
        ):
            column += [old[a:b], np.asarray(new, np.int32)]
        done = row + 1
    lengths = np.diff(encoded.offsets)
    for row, (ids, _, _) in again.items():
        lengths[row] = len(ids)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    ids, starts, ends = (np.concatenate(column) for column in columns)
    return Encoded(ids, offsets, starts, ends, encoded.by_offsets)


def _examples(
    conversations: Sequence[Conversation],
    encoded: Encoded,
    spans: ByteSpans,
    tokens: TokenSpans,
    weights: Float32Array,
    columns: Columns,
    failures: dict[int, Failure],
) -> Examples:
    """The rows with something to train; rows without are added to `failures`."""
    first = encoded.offsets[spans.rows]
    starts = np.maximum(tokens.starts, first + 1)  # nothing predicts an example's first token
    filled = tokens.ends > starts
    per_row = np.bincount(spans.rows[filled], minlength=len(conversations))
    for row in np.flatnonzero(per_row == 0):
        failures.setdefault(
            int(row), Failure("nothing_to_train", "expected a token to train, found none under this recipe")
        )
    kept = np.array([row for row in range(len(conversations)) if row not in failures], np.int64)
    of_kept = np.isin(spans.rows, kept) & filled
    relative = np.stack([starts - first, tokens.ends - first], axis=1)[of_kept].astype(np.int32)
    lengths = np.diff(encoded.offsets)[kept]
    digests = b"".join(conversations[row].digest() for row in kept)
    return Examples(
        ids=slices(encoded.ids, encoded.offsets[kept], lengths),
        offsets=offsets_of(lengths),
        spans=relative,
        span_offsets=offsets_of(per_row[kept]),
        span_weights=weights[of_kept],
        rows=kept,
        turns=columns.turn_counts[kept],
        source_turns=np.full(len(kept), -1, np.int32),
        digests=np.frombuffer(digests, np.uint8).reshape(len(kept), 16),
    )


def _regrouped(masked: Masked, parts: Sequence[Separated], conversations: Sequence[Conversation]) -> Masked:
    """Examples of single turns under the rows they come from. A row of which one turn fails is rejected whole."""
    failures: dict[int, Failure] = {}
    for number, failure in sorted(masked.failures.items()):
        part = parts[number]
        failures.setdefault(part.row, Failure(failure.reason, f"turn {part.turn}: {failure.detail}"))
    for row in set(range(len(conversations))) - {part.row for part in parts}:
        failures[row] = Failure("nothing_to_train", "expected a turn to train, found none under this recipe")
    rows = np.array([part.row for part in parts], np.int64)[masked.examples.rows]
    turns = np.array([part.turn for part in parts], np.int32)[masked.examples.rows]
    digests = b"".join(conversations[row].digest() for row in rows)
    examples = replace(
        masked.examples,
        rows=rows,
        turns=np.ones(len(rows), np.int32),
        source_turns=turns,
        digests=np.frombuffer(digests, np.uint8).reshape(len(rows), 16),
    )
    return Masked(take(examples, ~np.isin(rows, list(failures))), failures, masked.counts)
