import datetime
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from premask.read import Conversation
from premask.render import program as module
from premask.render.program import NotRendered, Program, Unproven

DATE = datetime.date(2024, 2, 29)
LINES = "{% for m in messages %}{% if m.content.startswith('a') %}A:{% endif %}{{ m.content|trim }}\n{% endfor %}"


def pieces(rendering):
    return [p.text for p in rendering.pieces], len(rendering.pieces)


def make(source, analyse=pieces, **variables):
    return Program(source, variables, DATE, analyse)


def lengths(rendered):
    """The bytes of every piece of every row; what keeps texts apart is left out."""
    sizes = np.diff(rendered.borders).tolist()
    rows = [sizes[a:b] for a, b in pairwise(rendered.first.tolist())]
    assert [row[-1] for row in rows] == [1] * len(rows)
    return [row[:-1] for row in rows]


def test_conversations_of_one_path_share_what_is_known_of_it(chat):
    rendered = make(LINES).render([chat("a ", "b"), chat("x", "y"), chat("ab", "é"), chat("x")])
    assert rendered.texts == ["A:a\nb\n", "x\ny\n", "A:ab\né\n", "x\n"]
    assert rendered.which.tolist() == [0, 1, 0, 2]
    assert lengths(rendered) == [[2, 1, 1, 1, 1], [1, 1, 1, 1], [2, 2, 1, 2, 1], [1, 1]]
    assert rendered.failures == {}


def test_nothing_to_render(chat):
    program = make("")
    assert program.render([]).texts == []
    rendered = program.render([chat("a", "b"), chat("a", "c")])
    assert rendered.texts == ["", ""] and lengths(rendered) == [[], []]


def test_a_failing_row_leaves_its_neighbours_alone(chat):
    program = make("{{ raise_exception('no a') if 'a' in messages[0].content }}x")
    for _ in range(2):
        rendered = program.render([chat("b"), chat("a"), chat("c")])
        assert rendered.texts == ["x", "", "x"]
        assert rendered.which.tolist() == [0, -1, 0] and lengths(rendered) == [[1], [], [1]]
        assert (rendered.failures[1].reason, rendered.failures[1].detail) == ("template_error", "no a")
    failure = make("{{ messages[0].content + 1 }}").render([chat("b")]).failures[0]
    assert failure.reason == "template_error" and failure.detail.startswith("TypeError: ")


def test_half_a_character_that_a_replay_makes_costs_its_row(chat):
    program = make("{{ messages[0].content.replace('a', '\\ud800') }}")
    rendered = program.render([chat("b"), chat("a"), chat("c")])
    assert rendered.texts == ["b", "", "c"] and program.leaves == 1
    assert rendered.failures[1].reason == "template_error"


def test_half_a_character_is_an_error_of_the_template(chat):
    rendered = make("{{ '\\ud800' }}").render([chat("b")])
    assert rendered.failures[0].reason == "template_error"


@pytest.mark.parametrize(("error", "reason"), [(Unproven, "mask_unproven"), (NotRendered, "not_rendered")])
def test_an_unproven_analysis_rejects_the_row(chat, error, reason):
    def analyse(rendering):
        if rendering.pieces[0].text == "A:":
            raise error("not that one")
        return pieces(rendering)

    program = make(LINES, analyse)
    for _ in range(2):
        rendered = program.render([chat("a"), chat("b")])
        assert (rendered.failures[0].reason, rendered.failures[0].detail) == (reason, "not that one")
        assert rendered.texts == ["", "b\n"]
    assert program.leaves == 1


def test_what_an_analysis_asks_is_part_of_the_path(chat):
    asked = []

    def analyse(rendering):
        text = rendering.pieces[0].text
        asked.append(text.starts_with("<think>"))
        head, tag, tail = text.partition("</think>")
        return [head, tag, tail], rendering.ask(1)

    program = make("{{ messages[0].content }}", analyse)
    rows = [chat("<think>a</think>b", "x"), chat("<think>c</think>dd", "y"), chat("c", "y"), chat("c", "")]
    rendered = program.render(rows)
    assert rendered.texts == [row.messages[0]["content"] for row in rows]
    assert asked == [True, False, False]
    assert rendered.paths == [True, True, False] and rendered.which.tolist() == [0, 0, 1, 2]
    assert lengths(rendered) == [[8, 8, 1], [8, 8, 2], [1, 0, 0], [1, 0, 0]]


def test_memory_is_bounded_and_the_text_is_not(chat, monkeypatch, oracle):
    monkeypatch.setattr(module, "MAX_LEAVES", 3)
    beside = oracle("{{ messages[0].content|length }}{{ messages[0].content }}")
    assert beside.check([chat("a" * n) for n in range(8)]) == {}
    assert beside.program.leaves == 3


def test_a_wrong_replay_stops_the_run(chat, monkeypatch):
    monkeypatch.setattr(module, "AUDIT_EVERY", 4)
    program = make("{{ messages[0].content }}")
    program.render([chat("a")])
    (tree,) = program.trees.values()
    tree.hot = [module.Leaf(lambda fields: ("wrong", ()), np.array([5, 1]), 0)]
    program.render([chat("b"), chat("c")])
    with pytest.raises(AssertionError, match="bug in premask"):
        program.render([chat("d")])


def test_an_audit_notices_that_the_template_refuses(chat, monkeypatch):
    monkeypatch.setattr(module, "AUDIT_EVERY", 2)
    program = make("{{ raise_exception('no') if 'x' in messages[0].content }}{{ messages[0].content }}")
    program.render([chat("a")])
    (tree,) = program.trees.values()
    tree.hot, (tree.root,) = [], tree.root.branches.values()  # the question is lost
    tree.root.leaf = replace(tree.root.leaf, fill=lambda fields: (fields[0], (len(fields[0]),)))
    with pytest.raises(AssertionError, match="bug in premask"):
        program.render([chat("x")])


def test_want_of_memory_is_no_fault_of_the_row(chat, monkeypatch):
    program = make("x")
    monkeypatch.setattr(program, "render_plain", lambda conversation: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        program.render([chat("a")])


def test_the_generation_prompt_is_asked_for_whatever_the_row_says(chat):
    prompts = []

    def analyse(rendering):
        prompts.append("".join(getattr(p.text, "value", p.text) for p in rendering.prompt(1)))
        return pieces(rendering)

    source = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{{ mood }}{% endif %}"
    arguments = {"add_generation_prompt": False, "mood": "!"}
    rendered = make(source, analyse).render([chat("a", "b", template_args=arguments), chat("a", "b")])
    assert prompts == ["a>!", "a>"] and rendered.texts == ["ab", "ab"]


def test_a_template_cannot_change_the_row(chat):
    row = chat("a", "b", template_args={"extra": ["c"]})
    make("{{ messages|indent }}").render([row])
    make("{{ extra|indent }}").render([row])
    assert row == chat("a", "b", template_args={"extra": ["c"]})


def test_order_does_not_matter(chat):
    rows = [chat(a, b) for a in ("a", "b", " ", "") for b in ("a1", "", "ab")]
    forwards, backwards = make(LINES), make(LINES)
    assert forwards.render(rows).texts == backwards.render(rows[::-1]).texts[::-1]
    assert forwards.leaves == backwards.leaves


@pytest.mark.parametrize("hot", [0, 1, 4])
def test_rows_of_many_paths_are_the_same_however_many_leaves_are_tried_first(oracle, chat, monkeypatch, hot):
    monkeypatch.setattr("premask.render.tree.HOT", hot)
    beside = oracle(LINES)
    rows = [chat(a, b, c) for a in ("a", " a", "") for b in ("ab", "b") for c in ("a\u00e9", "\u00e9 ")]
    assert beside.check(rows + rows[::-1]) == {}
    assert beside.program.leaves == 8
    (tree,) = beside.program.trees.values()
    assert len(tree.hot) == hot


def test_leaves_give_nothing_for_rows_of_other_paths(chat):
    program = make(LINES)
    program.render([chat("a"), chat("b")])
    first, second = next(iter(program.trees.values())).hot
    assert (first.fill(["ax"]), second.fill(["ax"])) == (("A:ax\n", (2,)), None)
    assert (first.fill(["bx"]), second.fill(["bx"])) == (None, ("bx\n", (2,)))


def test_an_answer_that_does_not_equal_itself(oracle, chat):
    """Not a number: no row ever takes the path of another, nor its own again."""
    beside = oracle("{{ '<' if messages[0].content|float(1.0) < 1.0 else '>' }}{{ messages[0].content|float }}")
    assert beside.check([chat("nan"), chat("0.5"), chat("nan"), chat("2")]) == {}


def test_nested_values_of_other_structure_take_other_paths(oracle):
    source = "{% for t in tools %}{% for k, v in t.function.items() %}{{ k }}={{ v|tojson }};{% endfor %}{% endfor %}"
    tools = [
        {"name": "f"},
        {"name": "g"},
        {"name": "f", "n": 1},
        {"name": "f", "n": True},
        {"name": "f", "n": [1.0, "x"]},
    ]
    beside = oracle(source)
    rows = [Conversation([{"role": "user", "content": "a"}], [{"function": function}]) for function in tools]
    assert beside.check(rows) == {}
    assert beside.program.leaves == 4
