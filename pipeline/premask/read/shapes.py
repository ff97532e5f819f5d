"""Rows of four shapes to conversations: which shape a file has, and what each row says in it.

`detect` looks at a file's first rows once; `convert` tells what a row says (`bulk.py` does so for many at a time), is
pure, never raises for what a row holds, and never changes the row. Both take rows as `premask.read.parse` makes them:
JSON values, text that UTF-8 can encode. The shapes are those of OpenAI, ShareGPT (as LLaMA-Factory and
Axolotl read it), Stanford Alpaca, and TRL's prompt-completion.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeAlias, get_args

from premask.errors import DataError, UsageError
from premask.read.conversation import Conversation, Message, Rejected, plain_of
from premask.read.faults import MISSING, Fault, check_json, listed, wrong_type
from premask.read.mapping import PLAIN, Shape, json_list
from premask.read.messages import Weights, read_messages
from premask.read.tools import parse_text, read_tools

Format: TypeAlias = Literal["messages", "sharegpt", "alpaca", "prompt-completion", "text"]

FORMATS: tuple[Format, ...] = get_args(Format)
"""The shapes a file may have; `text` has no roles, and is trained whole."""

_SHAPES = (
    "messages (messages), sharegpt (conversations), alpaca (instruction, output or response), "
    "prompt-completion (prompt, completion), text (text)"
)
_OWN_COLUMNS: dict[str, Format] = {
    "messages": "messages",
    "conversations": "sharegpt",
    "instruction": "alpaca",
    "output": "alpaca",
    "response": "alpaca",
    "prompt": "prompt-completion",
    "completion": "prompt-completion",
    "text": "text",
}
"""Columns that only one format has."""

BESIDE = frozenset(("label", "system", "tools", "chat_template_kwargs"))
"""Columns that say something beside the messages."""

_ALPACA_ANSWERS = ("output", "response")
_FIX = "correct the row, or drop it"


def detect(rows: Iterable[dict[str, Any]], where: str, shape: Shape = PLAIN) -> Format:
    """Tell a file's format by the columns of its first rows.

    Args:
        rows: the first rows that parse (see `first_rows`).
        where: the file's name, for messages.
        shape: what stands under other names; a column that it names decides for the format of that column.

    Raises:
        DataError: there is no row to look at.
        UsageError: no format fits, or several do.

    """
    seen: Counter[Format] = Counter()
    looked, unknown = 0, None
    chosen = {_OWN_COLUMNS[column] for column in shape.columns if column in _OWN_COLUMNS}
    for row in rows:
        looked += 1
        fitting = [format for format in _fitting(shape.read(row)) if not chosen or format in chosen]
        seen.update(fitting)
        if not fitting:
            unknown = row
    if not looked:
        remedy = "write one JSON object per line, or one JSON array (of any layout) in a file named .json"
        raise DataError(f"{where}: expected rows that are JSON objects, found none among the first; {remedy}")
    if not seen:
        found, remedy = listed(unknown or {}), "rename the columns, or map them in the recipe (columns)"
        raise UsageError(f"{where}: expected the columns of one of {_SHAPES}, found {found}; {remedy}")
    if len(seen) > 1:
        found = " and ".join(f"{format} ({count} of the first {looked} rows)" for format, count in seen.items())
        raise UsageError(
            f"{where}: expected one format, found columns of {found}; say which one with --format {'|'.join(seen)}"
        )
    return next(iter(seen))


def _fitting(row: dict[str, Any]) -> list[Format]:
    """List the formats whose columns a row has; a null column counts as absent, as tables write it."""
    columns = {key for key, value in row.items() if value is not None}
    fitting: list[Format] = []
    if "messages" in columns:
        fitting.append("messages")
    if "conversations" in columns:
        fitting.append("sharegpt")
    if "instruction" in columns and not columns.isdisjoint(_ALPACA_ANSWERS):
        fitting.append("alpaca")
    if "prompt" in columns and "completion" in columns:
        fitting.append("prompt-completion")
    if not fitting and type(row.get("text")) is str:
        fitting.append("text")
    return fitting


def convert(format: Format, row: dict[str, Any], shape: Shape = PLAIN) -> Conversation | Rejected:
    """Convert one row to a conversation, or say why it cannot be one."""
    try:
        if shape is not PLAIN:
            row = shape.read(row)
        if format == "text":
            return _whole(row)
        if row.get("label") is False:  # as TRL's KTO trainer and LLaMA-Factory mark what a model should not say
            remedy = "drop the row; if the column says something else, rename it"
            raise Fault("unwanted_answer", "label", "an answer to learn", "false: an answer that is not wanted", remedy)
        messages, weights = _READERS[format](row)
        if row.get("system"):
            messages, weights = _with_system(row["system"], messages, weights)
        if not any(message["role"] == "assistant" for message in messages):
            found, remedy = f"{len(messages)} messages by others", "there is nothing to train: drop the row"
            raise Fault("no_assistant_turn", "row", "a message by the assistant", found, remedy)
        tools = read_tools(row["tools"]) if "tools" in row else None
        template_args = _read_template_args(row["chat_template_kwargs"]) if "chat_template_kwargs" in row else {}
    except Fault as fault:
        return fault.rejected if shape is PLAIN else shape.named(fault.rejected)
    conversation = Conversation(messages, tools, template_args, weights)
    conversation.plain = plain_of(messages)
    return conversation


def _whole(row: dict[str, Any]) -> Conversation:
    """A text without roles: all of it is trained, and no template sees it."""
    text = _text(_column(row, "text"), "text")
    if not text:
        raise Fault("empty_conversation", "text", "at least one character", "none", "drop the row")
    for name in ("system", "tools", "chat_template_kwargs"):
        if row.get(name):
            found, remedy = f"{name} beside it", f"drop the column {name}, or write the row as messages"
            raise Fault("conflicting_fields", "row", "text that is trained as it stands", found, remedy)
    return Conversation([{"role": "assistant", "content": text}], whole=True)


def _from_messages(row: dict[str, Any]) -> tuple[list[Message], Weights]:
    return read_messages(json_list(_column(row, "messages")), "messages")


def _from_sharegpt(row: dict[str, Any]) -> tuple[list[Message], Weights]:
    return read_messages(json_list(_column(row, "conversations")), "conversations")


def _from_alpaca(row: dict[str, Any]) -> tuple[list[Message], Weights]:
    """`history`, then `instruction` and, unless blank, `input`, joined by a newline as LLaMA-Factory does."""
    question = _text(_column(row, "instruction"), "instruction")
    extra = row.get("input")
    if extra is not None and _text(extra, "input").strip():
        question = f"{question}\n{extra}" if question else extra
    answers = {key: row[key] for key in _ALPACA_ANSWERS if row.get(key) is not None}
    if len(answers) > 1 and answers["output"] != answers["response"]:
        raise Fault("conflicting_fields", "row", "one answer", "output and response that differ", "keep one of them")
    if not answers:
        _column(row, "output")
        raise wrong_type("output", "text", None, _FIX)
    key, answer = next(iter(answers.items()))
    messages: list[Message] = []
    history = row.get("history")
    if history is not None:
        messages = _read_history(history)
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "content": _text(answer, key)})
    return messages, None


def _read_history(history: Any) -> list[Message]:
    history = json_list(history)
    if type(history) is not list:
        raise wrong_type("history", "a list of [question, answer]", history, _FIX)
    messages: list[Message] = []
    for index, pair in enumerate(history):
        if type(pair) is not list or len(pair) != 2:
            raise wrong_type(f"history[{index}]", "[question, answer]", pair, _FIX)
        messages.append({"role": "user", "content": _text(pair[0], f"history[{index}][0]")})
        messages.append({"role": "assistant", "content": _text(pair[1], f"history[{index}][1]")})
    return messages


def _from_prompt_completion(row: dict[str, Any]) -> tuple[list[Message], Weights]:
    """Two texts are a user and an assistant message; of message lists the prompt's are never trained."""
    prompt, completion = _column(row, "prompt"), _column(row, "completion")
    if type(prompt) is str and type(completion) is str:
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}], None
    asked, _ = _read_side(prompt, "prompt", "user")
    answered, weights = _read_side(completion, "completion", "assistant")
    context: list[float | None] = [0.0] * len(asked)
    return asked + answered, context + (weights or [None] * len(answered))


def _read_side(side: Any, where: str, role: str) -> tuple[list[Message], Weights]:
    if type(side) is str:
        return [{"role": role, "content": side}], None
    if type(side) is not list:
        raise wrong_type(where, "text or a list of messages", side, _FIX)
    return read_messages(side, where)


_READERS: dict[Format, Callable[[dict[str, Any]], tuple[list[Message], Weights]]] = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "alpaca": _from_alpaca,
    "prompt-completion": _from_prompt_completion,
}


def _column(row: dict[str, Any], name: str) -> Any:
    value = row.get(name, MISSING)
    if value is MISSING:
        remedy = "if the whole file is so, name its format with --format; otherwise correct the row or drop it"
        raise Fault("unknown_shape", "row", f"the column {name}", listed(row), remedy)
    return value


def _text(value: Any, where: str) -> str:
    if type(value) is not str:
        raise wrong_type(where, "text", value, _FIX)
    return value


def _with_system(system: Any, messages: list[Message], weights: Weights) -> tuple[list[Message], Weights]:
    """Put the `system` column before the messages, unless they begin with the very same."""
    if not _text(system, "system").strip():
        return messages, weights
    if messages[0]["role"] == "system":
        if messages[0]["content"] == system:
            return messages, weights
        found = "a system column and a first message that differ"
        raise Fault("conflicting_fields", "system", "one system prompt", found, "keep one of them")
    return [{"role": "system", "content": system}, *messages], None if weights is None else [None, *weights]


def _read_template_args(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if type(value) is str:
        value = parse_text(value)
    if type(value) is not dict:
        raise wrong_type(
            "chat_template_kwargs", "an object", value, "write the arguments as an object, or drop the key"
        )
    check_json(value, "chat_template_kwargs")
    return value
