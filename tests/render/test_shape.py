import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from premask.read import Conversation
from premask.render.shape import copied, field_paths, flatten, map_fields, structure

scalars = st.one_of(st.none(), st.booleans(), st.integers(-1, 2), st.sampled_from([0.0, -0.0, 1.0]))
values = st.recursive(
    st.one_of(st.text("ab", max_size=2), scalars),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(["k", "role", "name", "dict"]), inner, max_size=2)
    ),
    max_leaves=5,
)
keys = st.sampled_from(["content", "name", "tool_calls", "function", "x", "dict"])
messages = st.lists(
    st.dictionaries(keys, values, max_size=3).map(lambda m: {"role": "user", **m}), min_size=1, max_size=2
)
tools = st.one_of(st.none(), st.lists(st.fixed_dictionaries({"function": values}), min_size=1, max_size=2))
conversations = st.builds(Conversation, messages, tools)


def skeleton(conversation):
    """The oracle: a conversation with every field blanked; all else written out, types, signs and order included."""
    return repr(map_fields(conversation, lambda number, path, value: type(value).__name__))


def at(conversation, path):
    value = {"tools": conversation.tools} if path[0] == "tools" else conversation.messages
    for key in path:
        value = value[key]
    return value


@settings(max_examples=200, deadline=None, derandomize=True)
@given(conversations, conversations)
def test_one_shape_is_one_skeleton(a, b):
    assert (flatten(a)[0] == flatten(b)[0]) == (skeleton(a) == skeleton(b))
    assert (hash(flatten(a)[0]) == hash(flatten(b)[0])) or flatten(a)[0] != flatten(b)[0]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(conversations)
def test_fields_stand_where_their_paths_say(conversation):
    _, fields = flatten(conversation)
    paths = field_paths(conversation)
    assert [at(conversation, path) for path in paths] == fields
    seen = []
    mapped, tools = map_fields(conversation, lambda number, path, value: seen.append((number, value)) or value)
    assert (mapped, tools) == (conversation.messages, conversation.tools)
    assert seen == list(enumerate(fields))
    beginning = Conversation(conversation.messages[:1], conversation.tools)
    assert field_paths(beginning) == paths[: len(flatten(beginning)[1])]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(values, values)
def test_structures(a, b):
    assert (structure(a, values=True) == structure(b, values=True)) == (repr(a) == repr(b))
    assert copied(a) == a and repr(copied(a)) == repr(a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ({"x": 1}, {"x": True}),
        ({"x": 0.0}, {"x": -0.0}),
        ({"x": 1}, {"x": 1.0}),
        ({"x": {}}, {"x": []}),
        ({"x": {"k": "a"}, "y": "b"}, {"x": "a", "dict": "b"}),
        ({"content": []}, {"content": {}}),
        ({"content": ["a"]}, {"content": [{"a": "b"}]}),
        ({"a": "x", "b": "y"}, {"b": "y", "a": "x"}),
        ({"content": None}, {}),
    ],
)
def test_unlike_shapes(a, b):
    first, second = (Conversation([{"role": "user", **m}]) for m in (a, b))
    assert flatten(first)[0] != flatten(second)[0]


def test_template_arguments_belong_to_the_shape():
    chat = [{"role": "user", "content": "a"}]
    kinds = [{}, {"x": "a"}, {"x": "b"}, {"x": 1}, {"x": True}, {"x": {"k": ["a"]}}]
    assert len({flatten(Conversation(chat, None, arguments))[0] for arguments in kinds}) == len(kinds)


def test_copies_are_the_templates_to_change():
    value = {"a": [1, {"b": [2]}]}
    copy = copied(value)
    copy["a"][1]["b"].append(3)
    assert value == {"a": [1, {"b": [2]}]}


PLAIN = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([PLAIN, PLAIN], [{"user": "x", **PLAIN}]),  # a key of the name of a role
        ([PLAIN, {"role": "user", "user": "x"}], [{"user": "x", "role": "user"}, PLAIN]),
        ([PLAIN], [{"content": "x", "role": "user"}]),  # a template may go through the keys
        ([PLAIN], [{"role": "user", "content": ["x"]}]),
        ([PLAIN], [{"role": "user", "text": "x"}]),
    ],
)
def test_messages_of_two_keys_are_told_from_others(one, other):
    assert flatten(Conversation(one))[0] != flatten(Conversation(other))[0]
