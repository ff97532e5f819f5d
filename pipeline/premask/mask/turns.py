"""From the pieces of a rendering to the turns in it: what the model was given, what it has to emit, and how it ends.

Works on one path of a template at a time, not on rows: the result says between which pieces a turn runs, and every
row of that path gets its byte positions by adding lengths.

**Where a turn starts.** After the longest beginning that it shares with the generation prompt (`prompts.py`): what
the template itself appends, behind the same preceding message, when asked for one. Of a literal any number of
characters is shared; a text of the conversation is shared only where it begins with all that is left of the prompt.

**Where it ends.** After the last control token among the literals that follow its last text; where there is none,
after the last literal that is not white space. A stop token that the template writes as the next turn's header closes
a turn that has no terminator of its own.
"""

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from premask.mask.controls import Vocabulary
from premask.mask.parts import Part, Tags, cut_parts
from premask.mask.prompts import Prompts
from premask.mask.written import REASONING_KEYS, owner_of, what_is_dropped
from premask.render.program import Rendering
from premask.render.values import TStr


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
    headers: list[tuple[int, str]]
    """What was shared with the generation prompt before each run of an assistant's pieces: message and text."""
    controls: list[tuple[int, int, str]]
    """Every control token and tag that the template itself writes: piece, byte within the piece, text."""
    generation: list[tuple[int, int]]
    """Pieces inside the template's own `{% generation %}`, half-open."""
    owners: list[int | None]
    """The message that every piece belongs to."""
    prompts: frozenset[str]
    """The generation prompts that were compared with."""
    unterminated: int
    """Turns with no terminator to learn."""
    reasoning_dropped: int
    """Messages whose reasoning the template does not write."""
    tools_dropped: bool
    """Whether the template does not write the tool schemas that the conversation has."""


def find_turns(rendering: Rendering, vocabulary: Vocabulary, tags: Tags | None) -> tuple[list[str | TStr], Turns]:
    """Cut a rendering's pieces at the borders of its turns, and say where they are.

    With `tags` the thinking part inside a text is found as well. Raises Unproven where the origin of a text is not
    certain, or a text is not rendered at all.
    """
    return _Analysis(rendering, vocabulary, tags).run()


class _Analysis:
    def __init__(self, rendering: Rendering, vocabulary: Vocabulary, tags: Tags | None) -> None:
        self.rendering = rendering
        self.vocabulary = vocabulary
        self.tags = tags
        self.roles = [m["role"] for m in rendering.conversation.messages]
        self.pieces = [p.text for p in rendering.pieces]
        self.owners = [owner_of(rendering, p) for p in rendering.pieces]
        self.marked = [p.generation for p in rendering.pieces]
        self.prompts = Prompts(rendering, vocabulary)
        self.headers: list[tuple[int, str]] = []
        self.stretches: list[Stretch] = []
        self.unterminated = 0

    def run(self) -> tuple[list[str | TStr], Turns]:
        """The pieces, cut, and the turns."""
        reasoning_dropped, tools_dropped = what_is_dropped(self.rendering)
        i = 0
        while i < len(self.pieces):
            owner = self.owners[i]
            i = self._turn(i, owner) if owner is not None and self.roles[owner] == "assistant" else i + 1
        turns = Turns(
            stretches=self.stretches,
            headers=self.headers,
            controls=self._controls(),
            generation=self._generation(),
            owners=self.owners,
            prompts=frozenset(self.prompts.known.values()),
            unterminated=self.unterminated,
            reasoning_dropped=reasoning_dropped,
            tools_dropped=tools_dropped,
        )
        return self.pieces, turns

    def _turn(self, first: int, owner: int) -> int:
        """One run of an assistant's pieces; returns where it ends."""
        end = first
        while end < len(self.pieces) and self.owners[end] == owner:
            end += 1
        prompt, space = self.prompts.before(first, self.pieces, self.owners)
        start, end, header = self._start(first, end, prompt)
        if space and start == first:
            start, end = self._take_before(first, end, len(space), owner)
        last = max((i for i in range(start, end) if not isinstance(self.pieces[i], str)), default=start - 1)
        closing, stop, end = self._stop(last + 1, end)
        goes_on = owner in self.owners[end:]
        if goes_on and closing < stop and self.pieces[closing] not in self.vocabulary.stops:
            closing = stop  # a token that closes something within the turn
        if any(not isinstance(p, str) or p.strip() for p in self.pieces[start:stop]):
            self.headers.append((owner, header))
            self.unterminated += closing == stop and not goes_on
            before = len(self.pieces)
            self._stretch(start, closing, stop, owner, header)
            return max(end, stop) + len(self.pieces) - before
        return max(end, stop)

    def _take_before(self, first: int, end: int, characters: int, owner: int) -> tuple[int, int]:
        """Give the literal characters before piece `first` to a turn; its new first piece, and its new end."""
        while characters:
            size = len(self.pieces[first - 1])
            if size > characters:
                self._cut(first - 1, size - characters)
                first, end, size = first + 1, end + 1, characters
            first, characters = first - 1, characters - size
            self.owners[first] = owner
        return first, end

    def _cut(self, i: int, at: int) -> None:
        """Cut piece `i`, so that its first `at` characters are a piece of their own."""
        piece = self.pieces[i]
        self._put(i, [piece[:at], piece[at:]])

    def _put(self, i: int, parts: Sequence[str | TStr]) -> None:
        """`parts` in place of piece `i`."""
        self.pieces[i : i + 1] = parts
        self.owners[i : i + 1] = [self.owners[i]] * len(parts)
        self.marked[i : i + 1] = [self.marked[i]] * len(parts)

    def _start(self, first: int, end: int, prompt: str) -> tuple[int, int, str]:
        """Where the text of a run parts from the generation prompt: piece, the run's new end, and what they share."""
        i, rest = first, prompt
        while rest and i < end:
            piece = self.pieces[i]
            if isinstance(piece, str):
                shared = self.prompts.shared(piece, rest)
                rest = rest[shared:]
                if shared < len(piece):
                    if shared:
                        self._cut(i, shared)
                        i, end = i + 1, end + 1
                    break
            elif piece:  # asks
                if piece.starts_with(rest):
                    self._cut(i, len(rest))
                    i, end, rest = i + 1, end + 1, ""
                break
            i += 1
        return i, end, prompt[: len(prompt) - len(rest)]

    def _stop(self, after: int, end: int) -> tuple[int, int, int]:
        """How the turn closes, given its literals from piece `after` on.

        Returns the piece that is its terminator, the piece behind the turn (the same where it has no terminator), and
        the run's new end.
        """
        literal = "".join(p for p in self.pieces[after:end] if isinstance(p, str))
        controls = self.vocabulary.find(literal)
        if controls:
            at, text = controls[-1]
            closing, end = self._split(after, end, at)
            stop, end = self._split(closing, end, len(text))
            if text in self.vocabulary.stops or not self._stops_behind(stop, end):
                return closing, stop, end
        else:
            stop, end = self._split(after, end, len(literal.rstrip()))
            if not self._stops_behind(stop, end):
                # Plain text may be a terminator, but not what closes a tool call.
                before = self.pieces[after - 1] if after else ""
                is_call = self._part(before) is Part.TOOL_CALLS
                return (stop if is_call else after), stop, end
        self._split(end, len(self.pieces), len(self._stops_behind(stop, end)))
        return end, end + 1, end + 1

    def _stops_behind(self, stop: int, end: int) -> str:
        """The stop token that the template writes right behind a run, as the next turn's header; empty if none."""
        following = self.pieces[end] if stop == end < len(self.pieces) else None
        found = self.vocabulary.find(following)[:1] if isinstance(following, str) else []
        return found[0][1] if found and found[0][0] == 0 and found[0][1] in self.vocabulary.stops else ""

    def _split(self, i: int, end: int, length: int) -> tuple[int, int]:
        """The piece that begins `length` characters behind the start of literal `i`, cut if needed; the new end."""
        while length > 0:
            piece = self.pieces[i]
            if not isinstance(piece, str):
                raise AssertionError("bug in premask: a text among the literals that close a turn")
            if length < len(piece):
                self._cut(i, length)
                end += 1
            length -= min(length, len(piece))
            i += 1
        return i, end

    def _stretch(self, start: int, closing: int, stop: int, owner: int, header: str) -> None:
        """Note the parts of a turn, whose terminator are the pieces from `closing` to `stop`."""
        cuts = cut_parts(self.pieces[start:closing], self._part, self.tags, header)
        marked = self.marked[start:closing]
        self.pieces[start:closing] = [cut.text for cut in cuts]
        self.owners[start:closing] = [owner] * len(cuts)
        self.marked[start:closing] = [marked[cut.source] for cut in cuts]
        for part, group in itertools.groupby(range(len(cuts)), key=lambda n: cuts[n].part):
            places = [start + n for n in group]
            self.stretches.append(Stretch(places[0], places[-1] + 1, owner, part))
        if closing < stop:
            end = start + len(cuts)
            self.stretches.append(Stretch(end, end + stop - closing, owner, Part.TERMINATOR))

    def _part(self, piece: str | TStr) -> Part:
        """What a piece is by the field it comes from."""
        if isinstance(piece, TStr):
            keys = {self.rendering.paths[source][1] for source in piece.sources}
            if keys & set(REASONING_KEYS):
                return Part.REASONING
            if "tool_calls" in keys:
                return Part.TOOL_CALLS
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


def runs(stretches: Sequence[Stretch]) -> list[Stretch]:
    """Neighbouring stretches of one message as one, of its first part."""
    merged: list[Stretch] = []
    for s in stretches:
        if merged and merged[-1].end == s.start and merged[-1].message == s.message:
            merged[-1] = replace(merged[-1], end=s.end)
        else:
            merged.append(s)
    return merged
