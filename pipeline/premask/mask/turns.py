"""From the pieces of a rendering to the turns in it: what the model was given, what it has to emit, and how it ends.

Works on one path of a template at a time, not on rows: the result says between which pieces a turn runs, and every row of that
path gets its byte positions by adding lengths.

**Who wrote a piece.** Text derived from a message belongs to that message, a literal to the message in whose iteration it was
written. Text of a tool or a user that is written within an assistant's iteration, with nothing to tell which literals around it
belong to whom, makes the rendering unproven.

**Where a turn starts.** After the longest beginning that it shares with the generation prompt: what the template itself
appends, behind the same preceding message, when asked for one. Of a literal any number of characters is shared; a text
of the conversation is shared only where it begins with all that is left of the prompt.

**Where it ends.** After the last control token among the literals that follow its last text; where there is none, after the
last literal that is not white space. A stop token that the template writes as the next turn's header closes a turn that has
no terminator of its own.
"""

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from premask.mask.controls import Vocabulary
from premask.render.program import Rendering, Unproven
from premask.render.tracing import Piece
from premask.render.values import TStr


class Part(IntEnum):
    """What a stretch of a turn is."""

    CONTENT = 0
    REASONING = 1
    TOOL_CALLS = 2
    TERMINATOR = 3


@dataclass(frozen=True, slots=True)
class Stretch:
    """Pieces `start` to `end` (half-open) of a rendering: emitted by the model in the turn of `message`."""

    start: int
    end: int
    message: int
    part: Part


@dataclass(frozen=True, slots=True)
class Turns:
    """What is known of one path."""

    stretches: list[Stretch]
    """In the order of the text, disjoint."""
    controls: list[tuple[int, int, str]]
    """Every control token and tag that the template itself writes: piece, byte within the piece, text."""
    generation: list[tuple[int, int]]
    """Pieces inside the template's own `{% generation %}`, half-open."""
    unterminated: int
    """Turns with no terminator to learn."""


REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


def find_turns(rendering: Rendering, vocabulary: Vocabulary) -> tuple[list[str | TStr], Turns]:
    """Cut a rendering's pieces at the borders of its turns, and say where they are.

    Raises Unproven where the origin of a text is not certain.
    """
    return _Analysis(rendering, vocabulary).run()


class _Analysis:
    def __init__(self, rendering: Rendering, vocabulary: Vocabulary) -> None:
        self.rendering = rendering
        self.vocabulary = vocabulary
        self.roles = [m["role"] for m in rendering.conversation.messages]
        self.pieces = [p.text for p in rendering.pieces]
        self.owners = [self._owner(p) for p in rendering.pieces]
        self.marked = [p.generation for p in rendering.pieces]
        self.prompts: dict[str, str] = {}
        self.stretches: list[Stretch] = []
        self.unterminated = 0

    def run(self) -> tuple[list[str | TStr], Turns]:
        i = 0
        while i < len(self.pieces):
            owner = self.owners[i]
            if owner is not None and self.roles[owner] == "assistant":
                i = self._turn(i, owner)
            else:
                i += 1
        return self.pieces, Turns(self.stretches, self._controls(), self._generation(), self.unterminated)

    def _owner(self, piece: Piece) -> int | None:
        """The message that a piece belongs to."""
        stamp = piece.message
        if isinstance(piece.text, str):
            return stamp
        places = {self.rendering.paths[source][0] for source in piece.text.sources}
        messages = {place for place in places if isinstance(place, int)}
        if stamp is None:
            return max(messages, default=None)
        if self.roles[stamp] == "assistant":
            for other in messages - {stamp}:
                if self.roles[other] != "assistant":
                    raise Unproven(
                        f"message {stamp}: the template writes text of message {other} ({self.roles[other]}) within "
                        "this assistant turn, and nothing tells where the turn goes on"
                    )
            if "tools" in places:
                raise Unproven(f"message {stamp}: the template writes tool schemas within this assistant turn")
        return stamp

    def _turn(self, first: int, owner: int) -> int:
        """One run of an assistant's pieces; returns where it ends."""
        end = first
        while end < len(self.pieces) and self.owners[end] == owner:
            end += 1
        start, end = self._start(first, end, owner)
        last = self._last_text(start, end)
        stop, end = self._stop(last + 1, end)
        if stop > start and any(not isinstance(p, str) or p.strip() for p in self.pieces[start:stop]):
            self._stretch(start, stop, last + 1, owner)
        return max(end, stop)

    def _cut(self, i: int, at: int) -> None:
        """Cut piece `i`, so that its first `at` characters are a piece of their own."""
        piece = self.pieces[i]
        self.pieces[i : i + 1] = [piece[:at], piece[at:]]
        self.owners.insert(i, self.owners[i])
        self.marked.insert(i, self.marked[i])

    def _start(self, first: int, end: int, owner: int) -> tuple[int, int]:
        """Where the text of a run parts from the generation prompt: piece index, and the run's new end."""
        prompt = self._prompt(first)
        i = first
        while prompt and i < end:
            piece = self.pieces[i]
            if isinstance(piece, str):
                shared = _shared(piece, prompt)
                if shared < len(piece):
                    if shared:
                        self._cut(i, shared)
                        i, end = i + 1, end + 1
                    break
                prompt = prompt[shared:]
            elif piece:  # asks
                if piece.method("startswith")(prompt):  # type: ignore[misc]
                    self._cut(i, len(prompt))
                    i, end = i + 1, end + 1
                break
            i += 1
        return i, end

    def _prompt(self, first: int) -> str:
        """The generation prompt behind the message that precedes piece `first`."""
        previous = max((o for o in self.owners[:first] if o is not None), default=-1)
        context = "" if previous < 0 else self.roles[previous]
        if context not in self.prompts:
            self.prompts[context] = self._rendered_prompt(previous + 1, first)
        return self.prompts[context]

    def _rendered_prompt(self, messages: int, first: int) -> str:
        """What follows the literals before piece `first` when the template is asked for a prompt there."""
        pieces = self.rendering.prompt(messages) if messages else None
        if pieces is None:
            return next((p for p in self.prompts.values() if p), "")
        before = _literals_at_end(self.pieces[:first])
        tail = _literals_at_end([p.text for p in pieces])
        if tail.startswith(before):
            return tail[len(before) :]
        unowned = [p.text if p.message is None else None for p in pieces]
        return _literals_at_end(unowned)

    def _last_text(self, start: int, end: int) -> int:
        """The last piece of the run that is the conversation's own; `start - 1` where there is none."""
        texts = [i for i in range(start, end) if not isinstance(self.pieces[i], str)]
        return texts[-1] if texts else start - 1

    def _stop(self, after: int, end: int) -> tuple[int, int]:
        """Where the turn stops, given its literals from `after` on: piece index, and the run's new end."""
        literal = "".join(p for p in self.pieces[after:end] if isinstance(p, str))
        controls = self.vocabulary.find(literal)
        length = controls[-1][0] + len(controls[-1][1]) if controls else len(literal.rstrip())
        i = after
        while length > 0:
            piece = self.pieces[i]
            assert isinstance(piece, str)
            if length < len(piece):
                self._cut(i, length)
                end += 1
                length = 0
            else:
                length -= len(piece)
            i += 1
        if not controls:
            i = self._next_header(i, end)
        return i, end

    def _next_header(self, i: int, end: int) -> int:
        """A stop token right behind a turn without terminator: the piece after it."""
        following = self.pieces[end] if i == end < len(self.pieces) else None
        if isinstance(following, str):
            for _, text in self.vocabulary.find(following)[:1]:
                if following.startswith(text) and text in self.vocabulary.stops:
                    if len(text) < len(following):
                        self._cut(end, len(text))
                    return end + 1
        if i == end or self.pieces[i - 1 : i] != [] and i > 0 and not isinstance(self.pieces[i - 1], str):
            self.unterminated += 1
        return i

    def _stretch(self, start: int, stop: int, closing: int, owner: int) -> None:
        """Note the parts of a turn."""
        closing = min(max(closing, start), stop)
        begin = start
        for i in range(start, closing):
            if i + 1 == closing or self._part(i + 1) != self._part(i):
                self.stretches.append(Stretch(begin, i + 1, owner, self._part(i)))
                begin = i + 1
        if closing < stop:
            self.stretches.append(Stretch(closing, stop, owner, Part.TERMINATOR))

    def _part(self, i: int) -> Part:
        return Part.CONTENT

    def _controls(self) -> list[tuple[int, int, str]]:
        """Found in runs of literals, so that a cut does not hide one."""
        found: list[tuple[int, int, str]] = []
        i = 0
        while i < len(self.pieces):
            j = i
            while j < len(self.pieces) and isinstance(self.pieces[j], str):
                j += 1
            run = [p for p in self.pieces[i:j] if isinstance(p, str)]
            borders = list(itertools.accumulate(map(len, run), initial=0))
            for at, text in self.vocabulary.find_all("".join(run)):
                n = bisect.bisect_right(borders, at) - 1
                found.append((i + n, len(run[n][: at - borders[n]].encode()), text))
            i = j + 1
        return found

    def _generation(self) -> list[tuple[int, int]]:
        marked = [False, *self.marked, False]
        borders = [i for i in range(len(marked) - 1) if marked[i] != marked[i + 1]]
        return list(zip(borders[::2], borders[1::2], strict=True))


def _literals_at_end(pieces: Sequence[str | TStr | None]) -> str:
    """The literals after the last piece that is none."""
    tail = itertools.takewhile(lambda p: isinstance(p, str), reversed(pieces))
    return "".join(reversed([p for p in tail if isinstance(p, str)]))


def _shared(a: str, b: str) -> int:
    """The length of the longest common beginning."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)


def stretches_of(turns: Turns, message: int) -> Sequence[Stretch]:
    """The stretches of one message's turn."""
    return [s for s in turns.stretches if s.message == message]
