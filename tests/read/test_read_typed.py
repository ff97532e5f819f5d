"""Rows decoded by their type are what `parse` and `convert` make of them, or are left to these."""

import itertools
from typing import Any, get_args, get_type_hints

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from premask.read import Conversation, convert, parse, plain_of
from premask.read.messages import ROLES
from premask.read.typed import _Message, typed_rows

ROW = (
    b'{"messages": [{"role": "user", "content": "a\\n\\u00e9b \xc3\xa9"}, '
    b'{"role":"assistant","content":"\\ud83d\\ude00"}]}'
)
PIECES = [
    *(b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b" ", b"\n", b"\r", b"\t", b"\x0b", b"\x00", b"\x1f", b"\x7f"),
    *(b"\xc3", b"\xa9", b"\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xef\xbb\xbf", b"\\u", b"\\ud800", b"\\udc00"),
    *(
        b'"role"',
        b'"content"',
        b'"messages"',
        b'"user"',
        b'"assistant"',
        b'"bot"',
        b'"r\\u006fle"',
        b'{"role"',
        b"null",
    ),
    *(
        b', "role": "user"',
        b', "content": ""',
        b', "x": 1',
        b', "messages": []',
        b"true",
        b"-1.5e3",
        b"[]",
        b"{}",
        b"//",
    ),
]


def check(raw: bytes) -> bool:
    """Whether the row was decoded by its type: then it is exactly what is made of it otherwise."""
    (found,) = typed_rows([raw])
    if found is None:
        return False
    row = parse(raw)
    assert isinstance(row, dict), raw
    conversation = convert("messages", row)
    assert isinstance(conversation, Conversation), raw
    assert conversation == Conversation(row["messages"])
    assert found == plain_of(row["messages"]) == conversation.plain
    return True


def content(text: bytes) -> bytes:
    return b'{"messages":[{"role":"assistant","content":"' + text + b'"}]}'


@settings(max_examples=1500, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(ROW)), st.integers(0, 12), st.sampled_from([b"", *PIECES])), max_size=3),
    st.booleans(),
)
@example([], False)
def test_damaged_rows(cuts: list[tuple[int, int, bytes]], twice: bool) -> None:
    raw = ROW
    for place, size, piece in cuts:
        raw = raw[:place] + piece + raw[place + size :]
    check(raw[:-1] + b", " + raw[1:] if twice else raw)
    assert cuts or twice or check(raw)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join))
def test_any_content(text: bytes) -> None:
    check(content(text))


def test_every_byte_and_every_pair_behind_a_leading_one() -> None:
    taken = [check(content(b"a" + bytes([byte]) + b"c")) for byte in range(256)]
    assert sum(taken) == 0x80 - 0x20 - 2  # a quote ends the text, a backslash escapes nothing
    for pair in itertools.product(range(0xC0, 256), range(0x40, 256)):
        check(content(bytes(pair)))
    for second, third in itertools.product((0x7F, 0x80, 0x9F, 0xA0, 0xBF, 0xC0), repeat=2):
        for first in (0xE0, 0xE1, 0xED, 0xEF, 0xF0, 0xF4):
            check(content(bytes([first, second, third])))
            check(content(bytes([first, second, third, 0x80])))


def test_every_escape() -> None:
    for byte in range(256):
        check(content(b"\\" + bytes([byte])))
    taken = [check(content(b"\\u%04x" % code)) for code in range(0, 0x10000, 7)]
    assert sum(taken) == len([code for code in range(0, 0x10000, 7) if not 0xD800 <= code < 0xE000])
    halves = (0xD7FF, 0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0xE000)
    for first, second in itertools.product(halves, repeat=2):
        check(content(b"\\u%04X\\u%04x" % (first, second)))
        check(content(b"\\u%04x\\n\\u%04x" % (first, second)))


MESSAGE = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("raw", "taken"),
    [
        (b'{"messages":[{"role":"assistant","content":"{\\"role\\":"}]}', True),
        (b'{"messages":  [ { "role":"assistant","content":"a"} ] }', False),  # not told from one with the text first
        (b'{"messages":[{"content":"a","role":"assistant"}]}', False),
        (b'{"messages":[{"r\\u006fle":"assistant","content":"a"}]}', False),
        (b'{"messages":[{"role":"user","role":"assistant","content":"a"}]}', True),
        (b'{"messages":[{"role":"assistant"}],"messages":[{"content":"a","role":"assistant"}]}', False),
        (b'{"messages":[{"role":"assistant","content":"a"}],"messages":[{"role":"assistant","content":"b"}]}', False),
        (b'{"messages":[{"role":"user","content":"a"}],"messages":[{"content":"a","role":"assistant"}]}', False),
        (b'{"messages":[],"messages":[{"role":"assistant","content":"a"}]}', False),
        (b'{"messages":[{"role":"assistant","content":"a"}],"id":1}', False),
        (b'{"id":1,"messages":[{"role":"assistant","content":"a"}]}', False),
        (b'{"messages":[{"role":"assistant","content":"a"}]} ', False),
        (b'{"messages":[{"role":"assistant","content":"a"}]}}', False),
        (b'{"messages":[{"role":"user","content":"a"}]}', False),
        (b'{"messages":[{"role":"human","content":"a"},{"role":"assistant","content":"a"}]}', False),
        (b'{"messages":[{"role":"assistant","content":null}]}', False),
        (b'{"messages":[{"role":"assistant","content":"a","weight":1}]}', False),
        (b'{"messages":[]}', False),
        (b'{"messages":}', False),
        (b'{"messages":', False),
        (b"", False),
    ],
)
def test_what_is_taken(raw: bytes, taken: bool) -> None:
    assert check(raw) == taken


def test_the_roles_are_those_of_a_conversation() -> None:
    assert set(get_args(get_type_hints(_Message)["role"])) == ROLES


def test_rows_of_all_kinds_side_by_side() -> None:
    rows: list[Any] = [b'{"messages": []}', orjson.dumps({"messages": [MESSAGE]}), {"messages": [MESSAGE]}, ROW, b"{"]
    emoji = (("user", "assistant"), ["a\néb é", "😀"])
    assert typed_rows(rows) == [None, (("assistant",), ["a"]), None, emoji, None]
    assert typed_rows([]) == []
