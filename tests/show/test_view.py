import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from premask.show.view import PackView, export_svg, plain_pack, print_pack, render_pack

SPECIAL = 256  # ids below are bytes, so that every way of cutting UTF-8 can be tried
BYTES = {**{byte: bytes([byte]) for byte in range(256)}, SPECIAL: b"<|im_end|>"}


def pack_of(*examples, source_rows=None):
    """Each example is a list of (bytes or SPECIAL, trained)."""
    ids, labels, lengths = [], [], []
    for example in examples:
        before = len(ids)
        for piece, trained in example:
            tokens = [SPECIAL] if piece == SPECIAL else list(piece)
            ids += tokens
            labels += tokens if trained else [-100] * len(tokens)
        lengths.append(len(ids) - before)
    arrays = [np.array(column, np.int32) for column in (ids, labels, lengths)]
    return PackView(
        ids=arrays[0],
        labels=arrays[1],
        seq_lengths=arrays[2],
        token_bytes=BYTES.__getitem__,
        source_rows=source_rows,
        special_ids={SPECIAL},
    )


def test_plain_form_puts_the_trained_text_in_brackets():
    pack = pack_of(
        [(b"user: hi\n", False), ("größe".encode(), True), (SPECIAL, True), (b"\n", False)],
        [(b"?", False), (b"yes", True)],
        source_rows=[7, 1043],
    )
    assert plain_pack(pack, width=60).split("\n") == [
        "⟦trained⟧ · masked · 2 examples, 22 tokens, 11 trained (50.0 %)",
        "── example 0 · source row 7 · 18 tokens, 8 trained ─────────",
        "user: hi⏎",
        "⟦größe<|im_end|>⟧⏎",
        "── example 1 · source row 1043 · 4 tokens, 3 trained ───────",
        "?⟦yes⟧",
        "",
    ]


def test_a_character_of_several_tokens_is_shown_whole_unless_the_mask_cuts_it():
    whole = pack_of([(b"a", False), ("漢".encode(), True)])
    assert "a⟦漢⟧" in plain_pack(whole)
    first, rest = "漢".encode()[:1], "漢".encode()[1:]
    cut = pack_of([(first, False), (rest, True)])
    assert "\\xe6⟦\\xbc\\xa2⟧" in plain_pack(cut)


def test_no_text_can_steer_the_terminal():
    evil = "\x1b[2J\x07\r\x9b31m\u202egnp.exe\t".encode()
    for drawn in (plain_pack(pack_of([(evil, True)])), render_pack(pack_of([(evil, True)])).plain):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", drawn)
        assert "␛[2J␇␍\\u009b31m\\u202egnp.exe⇥" in drawn


def test_colours_follow_the_mask():
    text = render_pack(pack_of([(b"ask", False), (SPECIAL, False), (b"answer", True), (SPECIAL, True)]))
    body = text.plain.index("\nask")
    styles = [(text.plain[span.start : span.end], span.style) for span in text.spans if span.start >= body]
    assert styles == [
        ("ask", "dim"),
        ("<|im_end|>", "bold bright_black"),
        ("answer", "green"),
        ("<|im_end|>", "bold green"),
    ]


PRINTABLE = st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"], include_characters="\n"), max_size=5)


@given(st.lists(st.lists(st.tuples(PRINTABLE.map(str.encode), st.booleans())), max_size=4))
def test_runs_say_what_the_tokens_say(examples):
    drawn = [[(run.text, run.trained) for run in runs] for _, runs in pack_of(*examples).examples()]
    naive = []  # one token at a time
    for example in examples:
        runs = []
        for byte, trained in [(byte, trained) for piece, trained in example for byte in piece]:
            if not runs or runs[-1][1] != trained:
                runs.append((b"", trained))
            runs[-1] = (runs[-1][0] + bytes([byte]), trained)
        naive.append([(raw.decode().replace("\n", "⏎\n"), trained) for raw, trained in runs])
    assert drawn == naive


def test_output_without_a_terminal_and_with_no_color_is_plain(monkeypatch):
    pack = pack_of([(b"ask", False), (b"answer", True)])
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    out = io.StringIO()
    print_pack(pack, Console(file=out, force_terminal=False, width=60))
    assert "ask⟦answer⟧" in out.getvalue()
    out = io.StringIO()
    print_pack(pack, Console(file=out, force_terminal=True, color_system="256", no_color=True, width=60))
    assert "ask⟦answer⟧" in out.getvalue()
    assert "\x1b" not in out.getvalue()
    out = io.StringIO()
    print_pack(pack, Console(file=out, force_terminal=True, color_system="256", width=60))
    assert "\x1b[32manswer" in out.getvalue()
    assert "⟦" not in out.getvalue()


def test_markup_and_brackets_in_the_text_are_text():
    out = io.StringIO()
    print_pack(pack_of([(b"[bold]x[/bold]", True)]), Console(file=out, force_terminal=False, width=60))
    assert "⟦[bold]x[/bold]⟧" in out.getvalue()


def test_svg_is_a_picture_on_its_own_and_always_the_same():
    pack = pack_of([(b"ask & <be told>\n", False), (b"answer", True), (SPECIAL, True)], source_rows=[3])
    svg = export_svg(pack, "one pack", width=70)
    assert svg == export_svg(pack, "one pack", width=70)
    ElementTree.fromstring(svg)  # noqa: S314 - our own picture
    assert "answer" in svg
    assert "url(http" not in svg


def test_columns_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="found 2 ids, 1 labels, lengths of 2 in all"):
        PackView(ids=np.zeros(2, np.int32), labels=np.zeros(1, np.int32), seq_lengths=np.array([2]), token_bytes=bytes)
    with pytest.raises(ValueError, match="expected 1 source rows, found 2"):
        pack_of([(b"x", True)], source_rows=[1, 2])


def test_an_empty_pack_is_drawn():
    assert plain_pack(pack_of()) == "⟦trained⟧ · masked · 0 examples, 0 tokens, 0 trained\n"
