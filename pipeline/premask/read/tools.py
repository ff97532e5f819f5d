"""Tools and tool calls: the shapes in which people write them, to OpenAI's.

In: the `tools` column (a list, or its JSON text), a message's `tool_calls`, and single calls written as JSON text
(ShareGPT's `function_call`, LLaMA-Factory's `tool_call` parts). Out: new lists of `{"type": "function", "function":
{...}}`; the input is never changed, and beside what is named here every key stays as it came.
"""

from typing import Any

import orjson

from premask.read.faults import MISSING, check_json, wrong_type

_NO_TOOLS = ("", "null", "[]")
_CALL = 'a tool call such as {"name": "search", "arguments": {"query": "..."}}'
_TOOL = 'a tool such as {"type": "function", "function": {"name": "search", "parameters": {...}}}'


def read_tools(value: Any) -> list[dict[str, Any]] | None:
    """Read a row's `tools` column: a list or its JSON text; None where it holds no tool."""
    if value is None or (type(value) is str and value.strip() in _NO_TOOLS):
        return None
    tools = parse_text(value) if type(value) is str else value
    if type(tools) is not list:
        raise wrong_type("tools", "a list of tools, or its JSON text", value, "write [] when there are none")
    check_json(tools, "tools")
    return [_read_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)] or None


def _read_tool(value: Any, where: str) -> dict[str, Any]:
    if type(value) is not dict:
        raise wrong_type(where, _TOOL, value, "write the schema as an object")
    tool: dict[str, Any] = value
    if "function" not in tool and "name" in tool:
        schema = {key: value for key, value in tool.items() if key != "type"}
        tool = {"type": "function", "function": schema}
    function = tool.get("function", MISSING)
    if type(function) is not dict:
        raise wrong_type(f"{where}.function", _TOOL, function, "only tools of type function can be rendered")
    remedy = "write the schema as the model's provider documents it"
    name = function.get("name", MISSING)
    if type(name) is not str:
        raise wrong_type(f"{where}.function.name", "text", name, remedy)
    parameters = function.get("parameters")
    if parameters is not None and type(parameters) is not dict:
        raise wrong_type(f"{where}.function.parameters", "a JSON schema object", parameters, remedy)
    return tool


def read_tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """Read a message's `tool_calls`; arguments that are an object's JSON text are parsed."""
    if type(calls) is not list:
        raise wrong_type(where, "a list of tool calls", calls, "leave the key out when there are none")
    return [read_call(call, f"{where}[{index}]") for index, call in enumerate(calls)]


def read_call_text(value: Any, where: str) -> list[dict[str, Any]]:
    """Read one call, or a list of calls, given as JSON or as its text: `{"name": ..., "arguments": ...}`."""
    calls = parse_text(value) if type(value) is str else value
    if type(calls) is list and calls:
        return [read_call(call, f"{where}[{index}]") for index, call in enumerate(calls)]
    if type(calls) is not dict:
        raise wrong_type(where, f"{_CALL} (or its JSON text)", value, "write the call as valid JSON")
    return [read_call(calls, where)]


def read_call(value: Any, where: str) -> dict[str, Any]:
    """Read one tool call; a bare `{"name", "arguments"}` is wrapped."""
    if type(value) is not dict:
        raise wrong_type(where, _CALL, value, "write the call as an object")
    call: dict[str, Any] = value
    if "function" not in call and "name" in call:
        inner = ("name", "arguments")
        outer = {key: value for key, value in call.items() if key not in inner and key != "type"}
        call = outer | {"type": "function", "function": {key: call[key] for key in inner if key in call}}
    function = call.get("function", MISSING)
    if type(function) is not dict:
        raise wrong_type(f"{where}.function", _CALL, function, "name the function that is called")
    name = function.get("name", MISSING)
    if type(name) is not str:
        raise wrong_type(f"{where}.function.name", "text", name, "name the function that is called")
    arguments = _read_arguments(function.get("arguments", MISSING), f"{where}.function.arguments")
    call = {**call, "function": {**function, "arguments": arguments}}
    check_json(call, where)
    return call


def _read_arguments(arguments: Any, where: str) -> dict[str, Any] | str:
    if type(arguments) is str:
        parsed = parse_text(arguments)
        return parsed if type(parsed) is dict else arguments
    if type(arguments) is dict:
        return arguments
    raise wrong_type(where, "an object, or its JSON text", arguments, "write {} when there are none")


def parse_text(text: str) -> Any:
    """Parse JSON inside a string; MISSING where it is not valid JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return MISSING
