"""The generation prompts within one conversation: what the template appends before the model speaks, by place."""

import itertools
from collections.abc import Sequence

from premask.mask.controls import Vocabulary
from premask.render.program import Rendering, Unproven
from premask.render.tracing import Piece
from premask.render.values import TStr


class Prompts:
    """The generation prompts of one rendering, each rendered when it is first needed."""

    def __init__(self, rendering: Rendering, vocabulary: Vocabulary) -> None:
        self.rendering = rendering
        self.vocabulary = vocabulary
        self.known: dict[str, str] = {}
        """By the role of the message that precedes; none for the conversation's beginning."""
        self.spaces: dict[str, str] = {}
        """White space that the template writes behind such a message only if there is another one, hence not in the
        prompt: the model has to write it (Mistral's first template)."""

    def before(self, first: int, pieces: Sequence[str | TStr], owners: Sequence[int | None]) -> tuple[str, str]:
        """The generation prompt behind the message that precedes piece `first`, and white space that it lacks.

        A header that the template writes although it would not prompt for one there is a header all the same: the
        prompts behind other messages are tried where this one shares nothing with the piece.
        """
        messages = self.rendering.conversation.messages
        previous = next((o for o in reversed(owners[:first]) if o is not None and o != owners[first]), -1)
        context = "" if previous < 0 else messages[previous]["role"]
        if context not in self.known:
            self.known[context], self.spaces[context] = self._rendered(previous + 1, pieces[:first])
        piece, prompts = pieces[first], [self.known[context], *self.known.values()]
        sharing = [p for p in prompts if isinstance(piece, str) and self.shared(piece, p)]
        return (sharing or prompts)[0], self.spaces[context]

    def shared(self, literal: str, prompt: str) -> int:
        """The length of the longest common beginning that cuts no control token or tag of either."""
        shorter = min(len(literal), len(prompt))
        shared = next((i for i in range(shorter) if literal[i] != prompt[i]), shorter)
        for text in (literal, prompt):
            for at, token in self.vocabulary.find_all(text):
                if at < shared < at + len(token):
                    shared = at
        return shared

    def _rendered(self, messages: int, before: Sequence[str | TStr]) -> tuple[str, str]:
        """What follows the literals at the end of `before` when the template is asked for a prompt there.

        And the white space that ends those literals and that the asked template does not write.
        """
        pieces = self.rendering.prompt(messages) if messages else None
        if pieces is None:
            return self._behind_any(), ""
        literals = _literals_at_end(before)
        tail = _literals_at_end([p.text for p in pieces])
        if tail.startswith(literals):
            return tail[len(literals) :], ""
        missing = literals[len(tail) :]
        return ("", missing) if literals.startswith(tail) and missing.isspace() else (_outside(pieces), "")

    def _behind_any(self) -> str:
        """The prompt behind any other message: for a turn that nothing precedes, or where none is rendered."""
        for messages in range(1, len(self.rendering.conversation.messages) + 1):
            pieces = self.rendering.prompt(messages)
            if pieces is not None:
                return _outside(pieces)
        raise Unproven("the template renders no generation prompt for any beginning of this conversation")


def _literals_at_end(pieces: Sequence[str | TStr | None]) -> str:
    """The literals after the last piece that is none."""
    tail = itertools.takewhile(lambda p: isinstance(p, str), reversed(pieces))
    return "".join(reversed([p for p in tail if isinstance(p, str)]))


def _outside(pieces: Sequence[Piece]) -> str:
    """The literals at the end of a rendering that were written outside of all messages."""
    return _literals_at_end([p.text if p.message is None else None for p in pieces])
