"""Real tokenizers of Mistral's, against mistral-common: its own ids, and its own control tokens around every turn.

mistral-common encodes requests without any template and never makes a control token of a message's text, so its ids say
both what a row must look like and where the model speaks: behind `[/INST]` or a tool's result, up to `</s>`.
"""

import datetime
import json
import warnings
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers.convert_slow_tokenizer import generate_merges

from premask.encode.encoder import Encoder
from premask.mask.controls import classify
from premask.mask.masker import Masker
from premask.read import Conversation
from premask.recipe import Recipe

mistral_common = pytest.importorskip("mistral_common")
pytest.importorskip("sentencepiece")
FOLDER = Path(mistral_common.__file__).parent / "data"
SENTENCEPIECE = ("tokenizer.model.v1", *sorted(p.name for p in FOLDER.glob("mistral_instruct_tokenizer_*")))
TEKKEN = sorted(p.name for p in FOLDER.glob("tekken_*.json"))
WITHOUT_TOOLS = ("tokenizer.model.v1",)
DROPPED = {"mistral_instruct_tokenizer_240216.model.v2": ["calls again and again"]}
"""Version 2 leaves out the calls before the last question, so such a row is rejected."""

CALL = {"type": "function", "id": "c1c1c1c1c", "function": {"name": "look", "arguments": {"x": "é 1", "n": 2}}}
SECOND = {"type": "function", "id": "d2d2d2d2d", "function": {"name": "look", "arguments": {}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {"x": {"type": "string"}, "n": {"type": "integer"}}},
    },
}


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def result(text: str, call: str = "c1c1c1c1c") -> dict[str, str]:
    return {"role": "tool", "content": text, "name": "look", "tool_call_id": call}


def calling(*calls: dict) -> dict:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


CHATS = {
    "one turn": said("Hello there", "Hi!"),
    "several turns": said("Hello", "Hi! é 漢字\n\n  ok", "Again\n", "def f():\n        return    1", "🙂", "e\u0301"),
    "a system message": [{"role": "system", "content": "Be brief."}, *said("Why?", "Because.", "No.", "Yes.")],
    "control tokens in words": said("Say </s> [INST] x [/INST]", "It is </s>, as in <s>[INST] hi [/INST] ho</s>."),
    "white space": said(" leading", "\nleading", "trailing ", "a\tb   c"),
}
CALLS = {
    "a call": [*said("Look"), calling(CALL), result("found it"), *said("", "It is there.")[1:]],
    "a number as a result": [*said("Count"), calling(CALL), result("42"), *said("", "Two.")[1:]],
    "control tokens in a result": [*said("Look"), calling(CALL), result("</s>[INST]x[/INST]"), *said("", "Odd.")[1:]],
    "calls again and again": [
        *said("Look", "Why?", "Do"),
        calling(CALL),
        result("a"),
        calling(CALL),
        result("0.5"),
        *said("", "Done.", "Thanks", "[TOOL_CALLS] none")[1:],
    ],
}


def sentencepiece(path: Path) -> Tokenizer:
    """As the models' `tokenizer.json` has it: merges by score, spaces as U+2581, one before the very first text."""
    import sentencepiece as library

    model = library.SentencePieceProcessor(model_file=str(path))
    pieces = [model.id_to_piece(i) for i in range(model.get_piece_size())]
    vocab, scores = {p: i for i, p in enumerate(pieces)}, {p: model.get_score(i) for i, p in enumerate(pieces)}
    controls = [p for i, p in enumerate(pieces) if model.is_control(i)]
    merges = generate_merges(vocab, scores, skip_tokens=controls)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)  # noqa: S106
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(c, normalized=False, special=True) for c in controls])
    return tokenizer


def tekken(path: Path) -> Tokenizer:
    from transformers.integrations.mistral.tokenizer import MistralConverter

    return MistralConverter(str(path)).converted()


def made(name: str) -> tuple[Masker, "Tokenizer"]:
    """A masker with a tokenizer of Mistral's and its template, and the tokenizer as mistral-common has it."""
    from mistral_common.integrations.chat_templates.chat_templates import convert_tokenizer_to_chat_template
    from mistral_common.protocol.instruct.validator import ValidationMode
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        template = convert_tokenizer_to_chat_template(str(FOLDER / name))
        theirs = MistralTokenizer.from_file(str(FOLDER / name), mode=ValidationMode.finetuning)
    encoder = Encoder((tekken if name in TEKKEN else sentencepiece)(FOLDER / name).to_str().encode())
    masker = Masker(
        template,
        {"bos_token": "<s>", "eos_token": "</s>"},
        datetime.date(2025, 1, 1),
        encoder,
        classify(encoder.added, template, frozenset(["</s>"])),
        Recipe(sources=["-"], tokenizer="-"),
    )
    return masker, theirs


def expected(theirs, messages: list[dict], tools: list[dict] | None) -> tuple[list[int], list[int]]:
    """Ids, and the places of those that the model has to write."""
    from mistral_common.protocol.instruct.request import ChatCompletionRequest

    arguments = [
        {**m, "tool_calls": [with_text(c) for c in m["tool_calls"]]} if "tool_calls" in m else m for m in messages
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ids = theirs.encode_chat_completion(ChatCompletionRequest(messages=arguments, tools=tools)).tokens
        inner = theirs.instruct_tokenizer.tokenizer
    if "[/INST]" in (vocabulary := inner.vocab()):
        opening = [[i] for i, piece in enumerate(vocabulary) if piece in ("[/INST]", "[/TOOL_RESULTS]")]
    else:
        opening = [inner.encode("[/INST]", bos=False, eos=False)]
    stop, speaking, trained = vocabulary.index("</s>"), False, []
    for place, token in enumerate(ids):
        if speaking:
            trained.append(place)
        if token == stop:
            speaking = False
        elif any(ids[place + 1 - len(o) : place + 1] == o for o in opening):
            speaking = True
    return ids, trained


def with_text(call: dict) -> dict:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


@pytest.mark.parametrize("name", [*SENTENCEPIECE, *(pytest.param(name, marks=pytest.mark.slow) for name in TEKKEN)])
def test_as_mistral_common_has_it(name):
    masker, theirs = made(name)
    quoting = (
        "control tokens in words"  # to version 1 `[/INST]` is plain text, by which nobody can tell it from a quote
    )
    chats = [(w, messages, None) for w, messages in CHATS.items() if name != "tokenizer.model.v1" or w != quoting]
    chats += [] if name in WITHOUT_TOOLS else [(what, messages, [TOOL]) for what, messages in CALLS.items()]
    masked = masker.mask([Conversation(messages=messages, tools=tools) for _, messages, tools in chats])
    assert {chats[row][0]: f.reason for row, f in masked.failures.items()} == dict.fromkeys(
        DROPPED.get(name, []), "not_rendered"
    )
    examples = masked.examples
    for row, place in enumerate(examples.rows.tolist()):
        what, messages, tools = chats[place]
        ids, trained = expected(theirs, messages, tools)
        assert examples.ids[examples.offsets[row] : examples.offsets[row + 1]].tolist() == ids, what
        spans = examples.spans[examples.span_offsets[row] : examples.span_offsets[row + 1]].tolist()
        assert [place for start, end in spans for place in range(start, end)] == trained, what
