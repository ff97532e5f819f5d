"""The recipe: defaults, validation with every problem named, the layers of the command line, the canonical form."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from premask.errors import UsageError
from premask.recipe import Curriculum, Filters, Recipe, SourceOptions, recipe_from

LEAST: dict[str, Any] = {"sources": ["chat.jsonl"], "tokenizer": "tok"}


def problems(**options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        Recipe(**options)
    return str(caught.value)


# --- values ---------------------------------------------------------------------------------------------------------


def test_defaults() -> None:
    assert Recipe(**LEAST).resolved() == {
        "columns": {},
        "control_tokens": "escape",
        "curriculum": None,
        "date": "2025-01-01",
        "drop_nulls": False,
        "duplicates": "keep",
        "filters": {},
        "format": "auto",
        "limit": None,
        "mask": "sampled",
        "max_length": 4096,
        "message_keys": {},
        "order": "shuffled",
        "overflow": "drop",
        "pack": "best_fit",
        "reasoning": "train",
        "role_map": {},
        "seed": 0,
        "sources": ["chat.jsonl"],
        "sources_order": "matters",
        "stop_tokens": [],
        "straddle": "mask",
        "template": None,
        "template_args": {},
        "terminator": "all",
        "tokenizer": "tok",
        "tool_calls": "train",
        "train_on": "all",
        "trim_tail": True,
        "turns": "together",
        "validation": 0.0,
    }


def test_every_field_is_described() -> None:
    for part in (Recipe, Filters, Curriculum):
        assert all(field.description for field in part.model_fields.values())
    own = {name for name, field in SourceOptions.model_fields.items() if not field.description}
    assert own <= set(Recipe.model_fields)  # described there


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe(**LEAST).seed = 1


def test_paths_are_taken_as_text() -> None:
    paths: dict[str, Any] = {"sources": [Path("a/b.jsonl")], "tokenizer": Path("tok"), "template": Path("t.jinja")}
    recipe = Recipe(**paths)
    assert (recipe.sources, recipe.tokenizer, recipe.template) == (["a/b.jsonl"], "tok", "t.jinja")


def test_date_as_date_and_as_text() -> None:
    day = datetime.date(2024, 2, 29)
    assert Recipe(**LEAST, date=day) == Recipe(**LEAST, date="2024-02-29")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "wording"),
    [
        ({"sources": []}, "sources: must not be empty, found []"),
        ({"sources": "a.jsonl"}, "sources: expected a valid list, found 'a.jsonl'"),
        ({"sources": ["a", 3]}, "sources[1]: expected a valid string, found 3"),
        ({"sources": ["a\udcff"]}, "sources[0]: expected text that UTF-8 can hold"),
        ({"tokenizer": ""}, "tokenizer: must not be empty"),
        ({"max_length": 1}, "max_length: expected greater than or equal to 2, found 1"),
        ({"max_length": 2**29 + 1}, "max_length: expected less than or equal to 536870912, found 536870913"),
        ({"max_length": "4096"}, "max_length: expected a valid integer, found '4096'"),
        ({"seed": True}, "seed: expected a valid integer, found True"),
        ({"seed": -1}, "seed: expected greater than or equal to 0, found -1"),
        ({"limit": 0}, "limit: expected greater than or equal to 1, found 0"),
        ({"train_on": "every"}, "train_on: expected 'all', 'last' or 'none', found 'every'"),
        ({"mask": "unsloth"}, "mask: expected 'sampled' or 'generation', found 'unsloth'"),
        ({"date": "1.2.2025"}, "date: expected a date as YYYY-MM-DD, found '1.2.2025'"),
        ({"date": 86400}, "date: expected a valid date, found 86400"),
        ({"stop_tokens": [""]}, "stop_tokens[0]: must not be empty"),
        ({"template_args": {"x": float("nan")}}, "template_args: expected values that JSON can hold, found {'x': nan}"),
        ({"template_args": {"x": "\ud800"}}, "template_args: expected values that JSON can hold"),
        ({"template_args": {"x": {1, 2}}}, "template_args.x: expected a valid JSON value, found {1, 2}"),
        ({"max_lenght": 5}, "max_lenght: no such option; did you mean max_length?"),
        ({"train-on": "all"}, "train-on: no such option; did you mean train_on?"),
        ({"wibble": 5}, "wibble: no such option; the options are sources, sources_order, tokenizer, template,"),
    ],
)
def test_one_problem(options: dict[str, Any], wording: str) -> None:
    assert problems(**(LEAST | options)).startswith(f"the recipe is wrong: {wording}")


def test_every_problem_is_named() -> None:
    text = problems(max_length=0, train_on="every", shuffel=1)
    assert text.splitlines() == [
        "the recipe is wrong in 5 places:",
        "  sources: missing; name at least one SOURCE, or set it in the recipe file",
        "  tokenizer: missing; give --tokenizer, or set it in the recipe file",
        "  max_length: expected greater than or equal to 2, found 0",
        "  train_on: expected 'all', 'last' or 'none', found 'every'",
        text.splitlines()[-1],
    ]
    assert "shuffel: no such option" in text


def test_long_values_are_cut() -> None:
    assert len(problems(**LEAST, seed="9" * 1000)) < 150


# --- canonical form -------------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"))
NUMBER = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(TEXT, JSON, max_size=3), st.integers(2, 10**6), st.dates())
def test_resolved_is_json_and_comes_back(arguments: dict[str, Any], length: int, date: datetime.date) -> None:
    recipe = Recipe(**LEAST, template_args=arguments, max_length=length, date=date)
    again = Recipe(**json.loads(json.dumps(recipe.resolved())))
    assert again == recipe
    assert again.digest() == recipe.digest()


def test_the_digest_sees_every_option() -> None:
    changed: dict[str, Any] = {
        "control_tokens": "allow", "date": "2025-01-02", "format": "alpaca", "limit": 1, "mask": "generation",
        "max_length": 4097, "pack": "none", "reasoning": "mask", "seed": 1, "sources": ["other"], "stop_tokens": ["x"],
        "straddle": "train", "template": "t", "template_args": {"x": 1}, "terminator": "last", "tokenizer": "other",
        "tool_calls": "mask", "train_on": "last", "trim_tail": False, "turns": "separate",
        "columns": {"messages": "x"}, "drop_nulls": True, "duplicates": "drop", "filters": {"min_turns": 2},
        "message_keys": {"content": "x"}, "overflow": "split", "role_map": {"bot": "assistant"},
        "sources_order": "sorted", "validation": 0.5, "order": "as_is",
    }  # fmt: skip
    assert set(changed) == set(Recipe.model_fields) - {"curriculum"}  # which goes with an order of that name
    digests = {Recipe(**(LEAST | {name: value})).digest() for name, value in changed.items()}
    assert len(digests | {Recipe(**LEAST).digest()}) == len(changed) + 1


def test_the_order_of_template_args_is_nothing() -> None:
    one = Recipe(**LEAST, template_args={"a": 1, "b": 2})
    assert one.digest() == Recipe(**LEAST, template_args={"b": 2, "a": 1}).digest()


# --- layers ---------------------------------------------------------------------------------------------------------


def write(folder: Path, text: str) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text)
    return file


def test_options_win_over_sets_and_sets_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "sources: [f]\ntokenizer: f\nseed: 1\nmax_length: 10\ntrain_on: none\ndate: 2024-05-06\n")
    recipe = recipe_from({"sources": ("o",), "seed": 3, "limit": None}, file, ["seed=2", "max_length=20"])
    assert (recipe.sources, recipe.tokenizer, recipe.seed, recipe.max_length) == (["o"], "f", 3, 20)
    assert (recipe.train_on, recipe.date, recipe.limit) == ("none", datetime.date(2024, 5, 6), None)


def test_nothing_given_leaves_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, "sources: [f]\ntokenizer: f\n")
    assert recipe_from({"sources": (), "tokenizer": None}, file).sources == ["f"]


def test_sets_are_yaml_and_the_last_wins() -> None:
    sets = [
        "stop_tokens=[<|user|>, <|observation|>]",
        "template_args={enable_thinking: false, n: [1, 2.5]}",
        "limit=7",
        "limit=8",
        "date=2024-01-31",
        "template=a=b.jinja",
    ]
    recipe = recipe_from(LEAST, None, sets)
    assert recipe.stop_tokens == ["<|user|>", "<|observation|>"]
    assert recipe.template_args == {"enable_thinking": False, "n": [1, 2.5]}
    assert (recipe.limit, recipe.date, recipe.template) == (8, datetime.date(2024, 1, 31), "a=b.jinja")


def test_problems_name_where_the_value_came_from(tmp_path: Path) -> None:
    file = write(tmp_path, "sources: [f]\nmax_lenght: 3\nseed: x\n")
    with pytest.raises(UsageError) as caught:
        recipe_from({"max_length": 1}, file, ["turns=apart"])
    assert str(caught.value).splitlines() == [
        "the recipe is wrong in 5 places:",
        "  tokenizer: missing; give --tokenizer, or set it in the recipe file",
        "  max_length (command line): expected greater than or equal to 2, found 1",
        f"  seed ({file}): expected a valid integer, found 'x'",
        "  turns (--set): expected 'together' or 'separate', found 'apart'",
        f"  max_lenght ({file}): no such option; did you mean max_length?",
    ]


@pytest.mark.parametrize(
    ("text", "wording"),
    [
        ("seed: 1\nmax_length: 2\nseed: 2\n", "line 3, column 1: .*'seed' is written twice"),
        ("template_args: {a: 1, a: 1}\n", "'a' is written twice"),
        ("sources: [a\n", r"line \d+, column \d+: this is no YAML that can be read"),
        ("date: 2025-13-45\n", "this is no YAML that can be read: month"),
        ("[" * 5000, "this is no YAML"),
        ("- a\n- b\n", "expected one `key: value` per line, found \\['a', 'b'\\]"),
        ("!!python/object/apply:os.getcwd []\n", "this is no YAML that can be read"),
        ("{[a]: 1}", "this is no YAML that can be read"),
    ],
)
def test_broken_files(tmp_path: Path, text: str, wording: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(UsageError, match=wording) as caught:
        recipe_from(LEAST, file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_not_text_or_not_there(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    with pytest.raises(UsageError, match=r"recipe.yaml: cannot be read: No such file"):
        recipe_from(LEAST, file)
    file.write_bytes(b"\x80\x81\xff")
    with pytest.raises(UsageError, match="this is no YAML that can be read"):
        recipe_from(LEAST, file)
    file.write_bytes(b"")
    assert recipe_from(LEAST, file) == Recipe(**LEAST)


@pytest.mark.parametrize("text", ["seed", "=3", " =3"])
def test_a_set_without_key_or_value(text: str) -> None:
    with pytest.raises(UsageError, match=f"--set {text}: expected key=value, such as --set train_on=last"):
        recipe_from(LEAST, None, [text])


def test_a_set_that_is_no_yaml() -> None:
    with pytest.raises(UsageError, match=r"--set stop_tokens=\[a"):
        recipe_from(LEAST, None, ["stop_tokens=[a"])


# --- sources with options of their own ------------------------------------------------------------------------------


def test_a_source_that_states_nothing_is_its_path() -> None:
    recipe = Recipe(sources=["a", {"path": "b"}, {"path": Path("c"), "limit": 3}], tokenizer="t")  # type: ignore[list-item]
    assert recipe.resolved()["sources"] == ["a", "b", {"path": "c", "limit": 3}]
    assert Recipe(**recipe.resolved()) == recipe


def test_a_source_inherits_what_it_does_not_state() -> None:
    sources: Any = ["a", {"path": "b", "train_on": "last", "limit": 2, "repeat": 3, "template_args": {"x": 1, "z": 0}}]
    recipe = Recipe(sources=sources, tokenizer="t", limit=9, seed=7, template_args={"x": 0, "y": 2}, turns="separate")
    first, second = recipe.source(0), recipe.source(1)
    assert (first.path, first.limit, first.repeat, first.train_on, first.template_args) == (
        "a",
        9,
        1,
        "all",
        {"x": 0, "y": 2},
    )
    assert (second.path, second.limit, second.repeat, second.train_on) == ("b", 2, 3, "last")
    assert (second.turns, second.template_args) == ("separate", {"x": 1, "y": 2, "z": 0})


def test_sources_that_are_masked_alike_share_one_masker() -> None:
    sources: Any = ["a", {"path": "b", "repeat": 3, "limit": 4, "format": "alpaca"}, {"path": "c", "reasoning": "mask"}]
    filters: Any = {"min_turns": 2, "scripts": {"Han": 1}}
    recipe = Recipe(sources=sources, tokenizer="t", seed=7, max_length=99, filters=filters)
    one, other, different = (recipe.masking(n) for n in range(3))
    assert one == other != different
    assert (different.reasoning, different.max_length, one.seed) == ("mask", 99, 0)
    assert one.filters == Filters(scripts={"Han": [1.0, 1.0]})
    assert Recipe(**one.resolved()) == one


def test_sources_change_places() -> None:
    recipe = Recipe(sources=["a", "b", "c"], tokenizer="t")
    assert recipe.with_sources([2, 0, 1]) == Recipe(sources=["c", "a", "b"], tokenizer="t")


def test_a_share_alone_is_the_least_one() -> None:
    filters: Any = {"scripts": {"Latin": 0.9, "Han": [0, 0.1]}}
    assert Recipe(**LEAST, filters=filters).resolved()["filters"] == {
        "scripts": {"Latin": [0.9, 1.0], "Han": [0.0, 0.1]}
    }


@pytest.mark.parametrize(
    ("options", "wording"),
    [
        ({"sources": [{"path": "a", "wieght": 2}]}, "sources[0].wieght: no such option; did you mean weight?"),
        ({"sources": ["a", {"weight": 2}]}, "sources[1].path: missing; write `path: ...` there"),
        ({"sources": [{"path": "a", "weight": 0}]}, "sources[0].weight: expected greater than 0, found 0"),
        ({"sources": [{"path": "a", "repeat": 1001}]}, "sources[0].repeat: expected less than or equal to 1000, found"),
        ({"sources": [{"path": "a", "columns": {"x": 1}}]}, "sources[0].columns: expected a valid string, found 1"),
        (
            {"sources": ["a", {"path": "b", "weight": 2}]},
            "sources[0].weight: missing; weights are relative to each other: give every source one, or none",
        ),
        ({"filters": {"min_turn": 2}}, "filters.min_turn: no such option; did you mean min_turns?"),
        ({"filters": {"min_turns": 3, "max_turns": 2}}, "filters: expected min_turns up to max_turns, found {"),
        ({"filters": {"scripts": {"Han": 1.5}}}, "filters.scripts.Han: expected less than or equal to 1, found 1.5"),
        (
            {"filters": {"scripts": {"Han": [0.5, 0.1]}}},
            "filters.scripts.Han: expected [least, most], found [0.5, 0.1]",
        ),
        ({"filters": 3}, "filters: expected keys with their values, found 3"),
        ({"order": "curriculum"}, "curriculum: missing; order=curriculum expects `by` and `up_to` there"),
        ({"order": "curriculum", "curriculum": {"by": "turns"}}, "curriculum.up_to: missing; write `up_to: ...` there"),
        (
            {"order": "curriculum", "curriculum": {"by": "turns", "up_to": [2, 2]}},
            "curriculum.up_to: expected rising numbers, found [2, 2]",
        ),
        (
            {"curriculum": {"by": "turns", "up_to": [2]}},
            "order: expected 'curriculum' beside the option curriculum, found 'shuffled'",
        ),
        ({"validation": 1}, "validation: expected less than 1, found 1"),
        ({"overflow": "cut"}, "overflow: expected 'drop', 'split' or 'truncate', found 'cut'"),
    ],
)
def test_one_problem_of_a_part(options: dict[str, Any], wording: str) -> None:
    assert problems(**(LEAST | options)).startswith(f"the recipe is wrong: {wording}")


# --- values within, by --set ----------------------------------------------------------------------------------------


def test_a_value_within_is_set_by_its_path() -> None:
    sets = ["sources.1.weight=2", "sources.0.weight=1.5", "filters.min_turns=2", "template_args.a.b=[1]", "filters={}"]
    recipe = recipe_from({"sources": ("a", "b"), "tokenizer": "t"}, None, sets)
    assert recipe.resolved()["sources"] == [{"path": "a", "weight": 1.5}, {"path": "b", "weight": 2.0}]
    assert (recipe.filters, recipe.template_args) == (Filters(min_turns=2), {"a": {"b": [1]}})


def test_a_value_within_changes_nothing_else(tmp_path: Path) -> None:
    file = write(tmp_path, "sources: [{path: a, limit: 3}, b]\ntokenizer: t\nfilters: {max_turns: 5}\n")
    recipe = recipe_from({}, file, ["sources.0.limit=4", "filters.min_turns=1"])
    assert recipe.resolved()["sources"] == [{"path": "a", "limit": 4}, "b"]
    assert recipe.filters == Filters(min_turns=1, max_turns=5)


@pytest.mark.parametrize(
    ("setting", "wording"),
    [
        ("sources.2.weight=1", "--set sources.2.weight: expected the number of an item, 0 to 1, found '2'"),
        ("sources.first.weight=1", "--set sources.first.weight: expected the number of an item, 0 to 1, found 'first'"),
        ("stop_tokens.0.x=1", "--set stop_tokens.0.x: expected a list with items, found an empty one"),
        ("seed.x=1", "--set seed.x: expected keys at 'x', found 1"),
        ("sources.0.wieght=1", "the recipe is wrong: sources[0].wieght (--set): no such option; did you mean weight?"),
        ("filters.min_turns=x", "the recipe is wrong: filters.min_turns (--set): expected a valid integer, found 'x'"),
    ],
)
def test_a_path_that_leads_nowhere(setting: str, wording: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipe_from({"sources": ("a", "b"), "tokenizer": "t"}, None, ["seed=1", "stop_tokens=[]", setting])
    assert str(caught.value) == wording
