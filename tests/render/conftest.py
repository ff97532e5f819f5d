"""The oracle of the rendering tests: whatever a program renders, cold or warm, is what plain Jinja renders."""

import datetime

import numpy as np
import pytest

from premask.read import Conversation
from premask.render.program import Program

DATE = datetime.date(2024, 2, 29)
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


class Oracle:
    """A program beside plain Jinja."""

    def __init__(self, source, variables=TOKENS, analyse=None):
        self.program = Program(source, variables, DATE, analyse or (lambda r: ([p.text for p in r.pieces], None)))
        self.replayed = 0
        """Rows that an earlier row's path rendered."""

    def expected(self, conversation):
        """The text; None where the template raises."""
        try:
            return self.program.render_plain(conversation)
        except Exception:
            return None

    def check(self, conversations):
        """Render all of them twice, the second time backwards; returns the reasons for which rows were refused."""
        refused = {}
        for batch in (conversations, conversations[::-1]):
            before = self.program.leaves
            rendered = self.program.render(batch)
            for row, conversation in enumerate(batch):
                text, failure = self.expected(conversation), rendered.failures.get(row)
                if text is None:
                    assert failure is not None, conversation
                    assert failure.reason == "template_error", conversation
                elif failure is not None:
                    assert failure.reason == "mask_unproven", (failure, conversation)
                    assert "differs" not in failure.detail or " at 0x" in text, conversation
                    refused[row] = failure.detail
                elif " at 0x" not in text:  # an address, which no two renderings have in common
                    assert rendered.texts[row] == text, conversation
            self._check_borders(rendered)
            self.replayed += len(batch) - len(rendered.failures) - (self.program.leaves - before)
        return refused

    @staticmethod
    def _check_borders(rendered):
        assert {row for row, path in enumerate(rendered.which) if path < 0} == set(rendered.failures)
        assert len(rendered.first) == len(rendered.texts) + 1 and rendered.first[-1] == len(rendered.borders) - 1
        sizes = [len(text.encode()) + 1 for text in rendered.texts]
        assert np.diff(rendered.borders[rendered.first]).tolist() == sizes


@pytest.fixture(scope="session")
def oracle():
    """Makes an Oracle from a template's source."""
    return Oracle


@pytest.fixture(scope="session")
def chat():
    """Makes a conversation from the contents of alternating user and assistant messages."""

    def make(*contents, **more):
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
        return Conversation(messages=messages, **more)

    return make
