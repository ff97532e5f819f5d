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
from functools import partial
from typing import Any

import numpy as np

from premask.clock import stage
from premask.dtypes import Int32Array
from premask.encode.encoder import Encoder
from premask.encode.measure import Positions
from premask.mask.choices import Choices, Path, choose
from premask.mask.columns import Columns
from premask.mask.controls import Vocabulary
from premask.mask.escaping import Escaping
from premask.mask.explain import Explanation, ask, labels, stretches
from premask.mask.grammar import discover
from premask.mask.masked import Masked, examples_of, merged, regrouped
from premask.mask.search import differing, haystack, search
from premask.mask.separate import in_chunks, separated
from premask.mask.spans import TokenSpans, to_tokens
from premask.mask.turns import Turns, find_turns
from premask.mask.whole import TEMPLATE, whole_turn
from premask.mask.written import refuse_forged_names
from premask.read import Conversation, Conversations
from premask.render.forms import adapt, discover_forms
from premask.render.program import Failure, Program, Rendered, Rendering
from premask.render.shape import field_paths
from premask.render.values import TStr

MASK_RULES = 1
"""Version of the rules by which tokens are trained; any change of a mask changes it."""


class Masker:
    """A chat template, a tokenizer and the choices of a recipe, ready for batches of conversations.

    With a `tool_template` conversations that have tools are rendered by that one, as transformers does where a
    tokenizer has a template called `tool_use`.
    """

    def __init__(
        self,
        template: str,
        variables: Mapping[str, Any],
        date: datetime.date,
        encoder: Encoder,
        vocabulary: Vocabulary,
        choices: Choices,
        tool_template: str | None = None,
    ) -> None:
        self.encoder = encoder
        self.vocabulary = vocabulary
        self.choices = choices
        self._program = partial(Program, template, variables, date)
        self.program: Program[Path] = self._program(self._analyse)
        self._whole = partial(Program, TEMPLATE, {}, date)
        self.whole: Program[Path] = self._whole(self._analyse)
        forms = discover_forms(self.program.render_plain)
        self.grammar = discover(self._program, vocabulary, encoder, forms)
        self._escaping = Escaping(encoder, vocabulary)
        self.with_tools: Masker | None = None
        """The masker of the conversations that have tools, where they have a template of their own."""
        if tool_template is not None:
            self.with_tools = Masker(tool_template, variables, date, encoder, vocabulary, choices)

    def _analyse(self, rendering: Rendering) -> tuple[list[str | TStr], Path]:
        pieces, _, path = self._analysed(rendering)
        return pieces, path

    def _analysed(self, rendering: Rendering) -> tuple[list[str | TStr], Turns, Path]:
        conversation = rendering.conversation
        if conversation.whole:
            pieces, turns = whole_turn(rendering)
        else:
            split = self.choices.reasoning == "mask" or self.choices.tool_calls == "mask"
            pieces, turns = find_turns(rendering, self.vocabulary, self.grammar.tags if split else None)
            if self.choices.control_tokens != "allow":
                refuse_forged_names(rendering, self.vocabulary)  # behind the turns, whose prompts may open more
        roles = [message["role"] for message in conversation.messages]
        texts = [i for i, piece in enumerate(pieces) if isinstance(piece, TStr)]
        searchable = not conversation.whole and self.grammar.can_search(conversation)
        path = choose(turns, texts, roles, searchable, self.choices)
        return pieces, turns, path

    def mask(self, conversations: Sequence[Conversation]) -> Masked:
        """Render, encode and mask a batch."""
        batch = Conversations.of(conversations)
        if self.with_tools is None or all(conversation.tools is None for conversation in batch.others.values()):
            return self._masked(batch)
        parts = []
        for masker, has_tools in ((self, False), (self.with_tools, True)):
            places = [n for n, c in enumerate(batch) if (c.tools is not None) is has_tools]
            parts.append((places, masker._masked([batch[n] for n in places])))
        return merged(parts)

    def _masked(self, conversations: Sequence[Conversation]) -> Masked:
        if self.choices.turns == "together":
            return self._mask(conversations)
        parts = [part for row, c in enumerate(conversations) for part in separated(row, c, self.choices.train_on)]
        chunks = [(places, self._mask([parts[n].conversation for n in places])) for places in in_chunks(parts)]
        return regrouped(merged(chunks), parts, conversations)

    def _mask(self, conversations: Sequence[Conversation]) -> Masked:
        counts: Counter[str] = Counter()
        with stage("render"):
            rendered = self._render(conversations)
        failures = dict(rendered.failures)
        with stage("encode"):
            encoded = self.encoder.encode(rendered.texts)
        columns = Columns(rendered)
        if not np.array_equal(columns.bases, encoded.bases):
            raise AssertionError("bug in premask: the pieces of a text do not add up to it")
        found = self._escaping.find(encoded)
        if self.choices.control_tokens != "allow":
            reject = self.choices.control_tokens == "reject"
            encoded, found = self._escaping.escape(rendered, encoded, found, columns, failures, counts, reject)
        self._prove(rendered, (encoded.ids[found], encoded.starts[found]), columns, failures, counts)
        spans, weights = columns.spans(conversations)
        tokens = to_tokens(encoded, spans, self.choices.straddle)
        examples, messages = examples_of(conversations, encoded, spans, tokens, weights, columns, failures)
        counts["rows_by_offsets"] += encoded.by_offsets
        self._count(tokens, columns, counts)
        return Masked(examples, messages, failures, counts)

    def _render(self, conversations: Sequence[Conversation]) -> Rendered[Path]:
        """Render a batch, of conversations or of texts that are trained whole: no source holds both."""
        batch, forms = Conversations.of(conversations), self.grammar.forms
        whole = {conversation.whole for conversation in batch.others.values()}
        if whole == {True} and len(batch.others) == len(batch):
            return self.whole.render(batch)
        if True in whole:
            raise AssertionError("bug in premask: texts and conversations in one batch")
        if not forms.strings:
            batch = Conversations.of(list(batch))
        return self.program.render(batch.mapped(lambda conversation: adapt(conversation, forms)))

    def explain(self, conversation: Conversation) -> Explanation:
        """One conversation, with the reason for every stretch of its text."""
        if self.with_tools is not None and conversation.tools is not None:
            return self.with_tools.explain(conversation)
        adapted = conversation if conversation.whole else adapt(conversation, self.grammar.forms)
        found: list[tuple[Sequence[str | TStr], Turns, Path]] = []
        questions: Mapping[Any, Any] = {}

        def analyse(rendering: Rendering) -> tuple[list[str | TStr], Path]:
            nonlocal questions
            questions = rendering.questions
            pieces, turns, path = self._analysed(rendering)
            found.append((pieces, turns, path))
            return pieces, path

        (self._whole if conversation.whole else self._program)(analyse).render([adapted])
        masked = self._mask([conversation])
        rejected = masked.failures.get(0)
        pieces, turns, path = found[0] if found else ([], None, None)
        roles = [message["role"] for message in adapted.messages]
        weights = conversation.weights or [None] * len(roles)
        tools, names = len(adapted.tools or []), [".".join(map(str, p)) for p in field_paths(adapted)]
        searched = path is not None and path.searchable
        return Explanation(
            stretches=stretches(pieces, turns, path, roles, weights, tools) if turns and path else [],
            questions=[ask(question, answer, names) for question, answer in questions.items()],
            proof="proven by provenance and by search" if searched else "proven by provenance and its bytes",
            ids=masked.examples.ids,
            labels=labels(masked.examples.ids, masked.examples.spans),
            rejected=f"{rejected.reason}: {rejected.detail}" if rejected else "",
        )

    def _prove(
        self,
        rendered: Rendered[Path],
        controls: tuple[Int32Array, Positions],
        columns: Columns,
        failures: dict[int, Failure],
        counts: Counter[str],
    ) -> None:
        """Reject the rows in which the search by markers finds other turns than provenance.

        `controls` are the control tokens of the batch, and where they begin.
        """
        searchable = columns.per_row([path.searchable for path in columns.paths]) > 0
        counts["rows_searched"] += int(searchable.sum())
        if not searchable.any():
            return
        hay = haystack(rendered.texts, *controls)
        starts, ends, aside = search(hay, self.grammar.markers, columns.texts())
        counts["markers_in_messages"] += aside
        turns, turn_ends = columns.turns()
        for row in np.flatnonzero(differing((starts, ends), (turns.starts, turn_ends), hay.bases) & searchable):
            failures.setdefault(
                int(row),
                Failure(
                    "mask_unproven",
                    "the search by markers and the provenance of the text do not agree on this row's turns; "
                    "`premask explain` shows where provenance sees them",
                ),
            )

    def _count(self, tokens: TokenSpans, columns: Columns, counts: Counter[str]) -> None:
        counts["straddle_start"] += int(tokens.cut_at_start.sum())
        counts["straddle_end"] += int(tokens.cut_at_end.sum())
        taken = np.bincount(columns.which[columns.which >= 0], minlength=len(columns.paths)).tolist()
        for path, rows in zip(columns.paths, taken, strict=True):
            for name, count in path.counts.items():
                counts[name] += count * rows
