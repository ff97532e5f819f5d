"""What the oracles know of every chat template, written by hand from how the models are used, never taken from premask.

A family says how an assistant turn looks in rendered text (`turn`, whose group `body` is what the model has to emit),
which of its added tokens are special, on what generation stops, and which forms of a message its template takes.
"""

import functools
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import trl
from tokenizers import AddedToken

from premask.encode.encoder import Encoder
from premask.mask.controls import classify
from premask.render.named import TEMPLATE_NAMES, named_template

KINDS = sys.modules["tokenizer_kinds"]  # which conftest.py loads first
ROOT = Path(__file__).parents[2]
SHARED = ROOT / "../shared/data"
TRL = Path(trl.__file__).parent / "chat_templates"


@dataclass(frozen=True, kw_only=True)
class Family:
    """One style of templates."""

    turn: str
    """Regular expression of a turn in rendered text; its group `body` is trained. Empty: a turn has no header."""
    eos: str
    bos: str | None = None
    kind: str = "bytes"
    """The tokenizer: `bytes` (byte-level BPE), `gemma`, `llama` or `phi` (BPE with byte fallback, spaces as U+2581)."""
    tokens: str = ""
    """Added tokens besides those of the template's own source that look like `<|x|>`, separated by spaces."""
    ordinary: str = ""
    """Added tokens that are not special."""
    stops: str = ""
    """End-of-sequence tokens of generation_config.json besides `eos`."""
    parts: bool = False
    """Content must be a list of parts."""
    lists: str = ""
    """Roles whose content may be a list of parts; the texts of others are joined by a line break."""
    text_arguments: bool = False
    """Arguments of tool calls must be JSON text."""
    nulls: bool = False
    """Null content stays null; otherwise it becomes empty."""
    tools: bool = True
    """The template writes tool calls."""
    reasoning: bool = True
    """The template writes `reasoning_content`, of the last turn at least."""
    given: str = ""
    """How the generation prompt ends where the template leaves that end to the message."""
    merges_neighbours: bool = False
    """Consecutive assistant messages cannot be told apart in the text."""


def chatml(header: str = "") -> str:
    return rf"<\|im_start\|>assistant\n{header}(?P<body>.*?<\|im_end\|>)"


QWEN = Family(
    turn=chatml(),
    eos="<|im_end|>",
    bos="<|endoftext|>",
    stops="<|endoftext|>",
    ordinary="<think> </think> <tool_call> </tool_call> <tool_response> </tool_response>",
)
EVERYBODY = "system user assistant tool"
THINKING = r"(?:<think>\n)?"
NOT_THINKING = r"(?:<think>\n\n</think>\n\n|<think>\n)?"
NEMOTRON = r"(?:<think>\n|<think>(?=</think>))?"
LLAMA3 = Family(
    turn=r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n(?P<body>.*?<\|e[oe][tm]_id\|>)",
    eos="<|eot_id|>",
    bos="<|begin_of_text|>",
    stops="<|end_of_text|> <|eom_id|>",
    reasoning=False,
)
GEMMA = Family(
    turn=r"<start_of_turn>model\n(?P<body>.*?<end_of_turn>)",
    eos="<end_of_turn>",
    bos="<bos>",
    kind="gemma",
    tools=False,
    reasoning=False,
)
GEMMA4 = Family(
    # Behind a tool's response the model goes on without a header; so does one that speaks again behind its own
    # terminator, since these templates write one header for neighbouring turns. `<|tool_response>` stops a call.
    turn=r"(?:<\|turn>model\n|<tool_response\|>(?:<\|turn>model\n)?(?!<\|tool_response>|\Z)|(?<=<turn\|>\n)(?!<\|turn>|\Z))"
    r"(?P<body>.*?(?:<turn\|>|<\|tool_response>|(?=<\|turn>)))",
    eos="<turn|>",
    bos="<bos>",
    kind="gemma",
    lists=EVERYBODY,
    stops="<|tool_response> <eos>",
    tokens='<|"|>',
    merges_neighbours=True,
)
COHERE = Family(
    turn=r"<\|START_OF_TURN_TOKEN\|><\|CHATBOT_TOKEN\|>(?P<body>.*?<\|END_OF_TURN_TOKEN\|>)",
    eos="<|END_OF_TURN_TOKEN|>",
    bos="<BOS_TOKEN>",
    tools=False,
    reasoning=False,
)
DEEPSEEK = Family(
    # A second call is written without a header (`is_first` stays true), hence the empty one before it.
    turn=r"(?:<｜Assistant｜>(?:<think>\n)?|<｜tool▁outputs▁end｜>|(?=\n<｜tool▁call▁begin｜>))"
    r"(?P<body>.*?(?:<｜end▁of▁sentence｜>|<｜tool▁call▁end｜>(?=<｜User｜>|\n?<｜tool▁outputs?▁begin｜>|\Z)))",
    eos="<｜end▁of▁sentence｜>",
    bos="<｜begin▁of▁sentence｜>",
    ordinary="<think> </think> <｜User｜> <｜Assistant｜> <｜tool▁sep｜> "
    "<｜tool▁calls▁begin｜> <｜tool▁calls▁end｜> <｜tool▁call▁begin｜> <｜tool▁call▁end｜> "
    "<｜tool▁outputs▁begin｜> <｜tool▁outputs▁end｜> <｜tool▁output▁begin｜> <｜tool▁output▁end｜>",
    reasoning=False,
    nulls=True,
    given="<think>\n",
)
GLM = Family(
    turn=r"<\|assistant\|>(?P<body>.*?(?:<\|user\|>|<\|observation\|>|(?=<\|system\|>|<\|assistant\|>)|\Z))",
    eos="<|endoftext|>",
    stops="<|user|> <|observation|>",
    tokens="[gMASK] <sop>",
    lists="system user assistant",
    ordinary="<think> </think> <tool_call> </tool_call> <tool_response> </tool_response> "
    "<arg_key> </arg_key> <arg_value> </arg_value>",
)
GPT_OSS = Family(
    turn=r"<\|start\|>assistant(?P<body>(?:<\|channel\|>analysis<\|message\|>.*?<\|end\|><\|start\|>assistant)?"
    r".*?(?:<\|end\|>|<\|return\|>|<\|call\|>))",
    eos="<|return|>",
    bos="<|startoftext|>",
    stops="<|call|> <|endoftext|>",
)
MUSE = Family(
    turn=r"<\|start\|>assistant(?P<body>.*?(?:<\|eot\|>|<\|eom\|>(?!<\|start\|>assistant)))",
    eos="<|eot|>",
    bos="<|begin_of_text|>",
    stops="<|eom|>",
    lists=EVERYBODY,
    ordinary="<atem:function_calls> </atem:function_calls>",
    merges_neighbours=True,
)
PHI3 = Family(
    turn=r"<\|assistant\|>\n(?P<body>.*?<\|end\|>)",
    eos="<|endoftext|>",
    bos="<s>",
    kind="phi",
    stops="<|end|> <|assistant|>",
    tools=False,
    reasoning=False,
)
LFM2 = Family(
    turn=chatml(), eos="<|im_end|>", bos="<|startoftext|>", ordinary="<think> </think>", tools=False, reasoning=False
)
SMOLVLM = Family(
    turn=r"(?<=<end_of_utterance>\n)Assistant:(?P<body>.*?<end_of_utterance>)",
    eos="<end_of_utterance>",
    bos="<|im_start|>",
    tokens="<image> <|begin_of_text|>",
    parts=True,
    tools=False,
    reasoning=False,
)
LLAVA = Family(
    turn=r"(?:\[/INST\]|(?<=</s> )(?= ))(?P<body> .*?</s>)",
    eos="</s>",
    bos="<s>",
    kind="llama",
    tokens="<image>",
    parts=True,
    tools=False,
    reasoning=False,
)
NEMOTRON_3 = replace(QWEN, turn=chatml(NEMOTRON), bos="<s>", given="<think>\n")
LFM2_TOOLS = replace(LFM2, tools=True)
LFM2_THINKING = replace(LFM2, tools=True, reasoning=True, lists=EVERYBODY)

FAMILIES = {
    "cohere": COHERE,
    "cohere2": replace(
        COHERE,
        turn=r"<\|START_OF_TURN_TOKEN\|><\|CHATBOT_TOKEN\|><\|START_RESPONSE\|>"
        r"(?P<body>.*?<\|END_RESPONSE\|><\|END_OF_TURN_TOKEN\|>)",
    ),
    "deepseek_r1_distill": replace(DEEPSEEK, tools=False, text_arguments=True),
    "deepseekv3": replace(DEEPSEEK, text_arguments=True),
    "deepseekv3_training": DEEPSEEK,
    "diffusion_gemma": GEMMA4,
    "gemma": GEMMA,
    "gemma3": replace(GEMMA, tokens="<start_of_image>", lists="user assistant"),
    "gemma4": GEMMA4,
    "gemma4_v2": replace(GEMMA4, lists="user assistant tool"),
    "gemma4_v3": replace(GEMMA4, lists="user assistant tool"),
    "glm4moe": GLM,
    # The twin writes the next role's header within the assistant's turn, the system's included.
    "glm4moe_training": replace(GLM, turn=GLM.turn.replace(r"(?=<\|system\|>|", r"<\|system\|>|(?=")),
    "gptoss": GPT_OSS,
    "idefics3": SMOLVLM,
    "lfm2": LFM2,
    "lfm2_2_5": LFM2_THINKING,
    "lfm2_v2": LFM2_TOOLS,
    "llama3": replace(LLAMA3, tools=False),
    "llama3_1": LLAMA3,
    "llama3_2": LLAMA3,
    "llava_next": LLAVA,
    "muse_glimmer": MUSE,
    "nemotron_3": NEMOTRON_3,
    "phi3": PHI3,
    "qwen2_5": replace(QWEN, reasoning=False),
    "qwen2_5_vl": replace(QWEN, tools=False, reasoning=False, lists=EVERYBODY),
    "qwen3": QWEN,
    "qwen3_5_nothink": replace(QWEN, turn=chatml(NOT_THINKING), lists=EVERYBODY),
    "qwen3_5_think": replace(QWEN, turn=chatml(THINKING), lists=EVERYBODY),
    "qwen3_6": replace(QWEN, turn=chatml(THINKING), lists=EVERYBODY),
    "qwen3_8": replace(QWEN, turn=chatml(THINKING), lists=EVERYBODY),
    "qwen3_instruct_2507": replace(QWEN, reasoning=False),
    "qwen3_vl": replace(QWEN, reasoning=False, lists=EVERYBODY),
    "smolvlm": SMOLVLM,
    "premask:alpaca": Family(
        turn=r"(?:(?<=\n\n)|(?<=<s>)|\A)### Response:\n(?P<body>.*?</s>)",
        eos="</s>",
        bos="<s>",
        kind="llama",
        lists=EVERYBODY,
        tools=False,
        reasoning=False,
    ),
    "premask:chatml": replace(QWEN, lists=EVERYBODY),
    "premask:llama-3": replace(LLAMA3, tools=False, lists=EVERYBODY),
    "premask:plain": Family(
        turn="", eos="</s>", bos="<s>", kind="llama", lists=EVERYBODY, tools=False, reasoning=False
    ),
    "premask:zephyr": Family(
        turn=r"<\|assistant\|>\n(?P<body>.*?</s>)",
        eos="</s>",
        bos="<s>",
        kind="llama",
        lists=EVERYBODY,
        tools=False,
        reasoning=False,
    ),
}
"""Families by template name; a name that is not here takes the longest one that it begins with."""

NAMES = [*sorted(p.stem for p in TRL.glob("*.jinja")), *(f"premask:{name}" for name in TEMPLATE_NAMES)]
"""Every template under test: all of TRL's, and ours."""


@functools.cache
def source(name: str) -> str:
    """The Jinja source of a template."""
    if name.startswith("premask:"):
        return named_template(name.removeprefix("premask:"))
    return (TRL / f"{name}.jinja").read_text()


@functools.cache
def family(name: str) -> Family:
    """The family of a template."""
    return FAMILIES[max((known for known in FAMILIES if name.startswith(known)), key=len)]


@functools.cache
def added_tokens(name: str) -> tuple[AddedToken, ...]:
    """The added tokens of a template's family: those its source names, those of the family."""
    own = family(name)
    found = set(re.findall(r"<[|｜][^<>\s|｜]+[|｜]>|<(?:start|end)_of_turn>|<\|[a-z_]+>|<[a-z_]+\|>", source(name)))
    found |= {"<end_of_utterance>"} & {own.eos}
    found |= {own.eos, *([own.bos] if own.bos else []), *own.tokens.split(), *own.stops.split()}
    ordinary = own.ordinary.split()
    if own.kind == "llama":
        found = {t for t in found if t in ("<s>", "</s>", "<image>")}  # tags such as `<|user|>` are plain text there
    swallow = own.kind == "phi"
    special = [
        AddedToken(t, special=True, normalized=False, rstrip=swallow and t not in (own.eos, "<s>"))
        for t in sorted(found - set(ordinary))
    ]
    return (*special, *(AddedToken(t, special=False, normalized=False) for t in ordinary))


@functools.cache
def family_tokenizer(name: str) -> bytes:
    """The tokenizer.json of a template's family."""
    return KINDS.build(family(name).kind, added_tokens(name))


def variables(name: str) -> dict[str, str]:
    """The special tokens that a template is given."""
    own = family(name)
    return {"eos_token": own.eos, **({"bos_token": own.bos} if own.bos else {})}


@functools.cache
def encoder(name: str) -> Encoder:
    return Encoder(family_tokenizer(name))


def vocabulary(name: str):
    """Control tokens, tags and stops, as preparing derives them."""
    own = family(name)
    return classify(encoder(name).added, source(name), frozenset([own.eos, *own.stops.split()]))
