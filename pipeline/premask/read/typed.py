"""Rows that are nothing but `{"messages": [{"role": ..., "content": ...}, ...]}`, decoded straight to roles and texts.

msgspec decodes JSON of a known type in half the time in which orjson makes dictionaries, and checks the type at once.
It takes nothing that orjson refuses, and reads the same from it: the tests compare them. What it does not tell is the
order of a message's keys, which templates may show: as many objects must begin with their role as there are messages.
In a string no `{"role"` can stand, since a quote is escaped there.
"""

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from operator import attrgetter
from typing import Any, Literal

import msgspec

from premask.read.conversation import Plain

_START, _END = b'{"messages":', b"}"
_ROLE_FIRST = b'{"role"'


class _Message(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str


_decode = msgspec.json.Decoder(list[_Message]).decode
_role, _content = attrgetter("role"), attrgetter("content")


def typed_rows(raws: Sequence[Any]) -> list[Plain | None]:
    """Roles and texts of the rows that are of this type, one of the messages the assistant's; None for any other."""
    found: list[Plain | None] = [None] * len(raws)
    numbers: list[int] = []
    lists: list[list[_Message]] = []
    for number, raw in enumerate(raws):
        if type(raw) is bytes and raw.startswith(_START) and raw.endswith(_END):
            try:
                messages = _decode(raw[len(_START) : -len(_END)])
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue
            if raw.count(_ROLE_FIRST) == len(messages):
                numbers.append(number)
                lists.append(messages)
    flat = list(chain.from_iterable(lists))
    roles, texts = list(map(_role, flat)), list(map(_content, flat))
    for number, (first, end) in zip(numbers, pairwise(accumulate(map(len, lists), initial=0)), strict=True):
        who = tuple(roles[first:end])
        if "assistant" in who:
            found[number] = who, texts[first:end]
    return found
