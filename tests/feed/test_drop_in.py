"""The calls of Unsloth's documentation on real trainers, and the mistakes that masks by markers are known for."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
    set_seed,
)

import premask
from premask.errors import DataError, UsageError
from premask.feed.collators import ResponseOnlyCollator
from premask.feed.drop_in import train_on_responses_only
from premask.feed.named_templates import get_chat_template

DATA = Path(__file__).parents[2] / "data"
CHATML = ("<|im_start|>user\n", "<|im_start|>assistant\n")
LLAMA = ("<|start_header_id|>user<|end_header_id|>\n\n", "<|start_header_id|>assistant<|end_header_id|>\n\n")
ALPACA = ("### Instruction:\n", "### Response:\n")
TURNS = {
    "chatml": r"(?<=<\|im_start\|>assistant\n).*?<\|im_end\|>",
    "llama-3.1": r"(?<=<\|start_header_id\|>assistant<\|end_header_id\|>\n\n).*?<\|eot_id\|>",
    "alpaca": r"(?<=### Response:\n).*?<\|im_end\|>",
}
"""What is to be trained of a row's text."""

pytestmark = [
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),  # TRL 1.16's default
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true:UserWarning"),
]


def tokenizer_for(template="chatml"):
    tokenizer = AutoTokenizer.from_pretrained(str(DATA / "tokenizer"))
    if template == "llama-3.1":
        tokens = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
        tokenizer.add_special_tokens({"additional_special_tokens": tokens})
        tokenizer.bos_token, tokenizer.eos_token = tokens[0], tokens[-1]
    return get_chat_template(tokenizer, template)


def chat(*contents, roles=("user", "assistant")):
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]


CHATS = [
    chat("What is two and two?", "Four.", "And three and three?", "Six.\n\nOf course."),
    chat("Name a colour.", "Blue"),
    chat("Say nothing.", "", "Say it again.", "No: I have said nothing, and I shall not say it again."),
    chat("Count.", "\n\n1\n2\n3", "Thanks", "You are welcome!"),
]


def pieces(tokenizer, ids):
    return [tokenizer.decode([i]) for i in ids]


def expected_labels(tokenizer, ids, turn, last=False):
    """Labels by a regular expression over the row's own text, token by token."""
    texts, places, place = pieces(tokenizer, ids), [], 0
    for text in texts:
        places.append((place, place + len(text)))
        place += len(text)
    spans = [m.span() for m in re.finditer(turn, "".join(texts), re.DOTALL)]
    spans = spans[-1:] if last else spans
    return [i if any(s <= a and b <= e for s, e in spans) else -100 for i, (a, b) in zip(ids, places, strict=True)]


def model_for(tokenizer):
    set_seed(0)
    config = AutoConfig.from_pretrained(DATA / "tiny-llama", vocab_size=len(tokenizer))
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.seen = []

    def note(_, args, kwargs):
        keys = ("input_ids", "labels", "attention_mask", "position_ids")
        model.seen.append({name: kwargs[name].tolist() for name in keys if kwargs.get(name) is not None})

    model.register_forward_pre_hook(note, with_kwargs=True)
    return model


ARGUMENTS = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}


def sft_trainer(tokenizer, dataset, tmp_path, **options):
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model=model_for(tokenizer),
        processing_class=tokenizer,
        train_dataset=dataset,
        args=SFTConfig(
            output_dir=str(tmp_path), dataset_text_field="text", **{"max_length": 256, **ARGUMENTS, **options}
        ),
    )


def assert_saw(trainer, tokenizer, turn, last=False):
    """The rows that reached the model had the right labels; padding had none."""
    seen = [
        (ids, labels, mask)
        for batch in trainer.model.seen
        for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True)
    ]
    assert len(seen) == len(CHATS)
    for ids, labels, mask in seen:
        own = [i for i, kept in zip(ids, mask, strict=True) if kept]
        wanted = expected_labels(tokenizer, own, turn, last)
        assert any(label != -100 for label in wanted)
        assert labels == [wanted.pop(0) if kept else -100 for kept in mask]


ALPACA_PROMPT = """Below is an instruction that describes a task. Write a response that completes the request.

### Instruction:
{}

### Response:
{}"""


@pytest.mark.parametrize(
    ("template", "parts", "last"),
    [
        ("llama-3.1", LLAMA, False),
        ("llama-3.1", None, True),
        ("chatml", CHATML, True),
        ("alpaca", ALPACA, False),
        ("alpaca", None, True),
    ],
)
def test_the_calls_of_the_documentation(template, parts, last, tmp_path):
    tokenizer = tokenizer_for(template)

    def formatting_prompts_func(examples):
        return {"text": [tokenizer.apply_chat_template(c, tokenize=False) for c in examples["conversations"]]}

    dataset = Dataset.from_dict({"conversations": CHATS}).map(formatting_prompts_func, batched=True)
    trainer = sft_trainer(tokenizer, dataset.select_columns("text"), tmp_path)
    named = dict(zip(("instruction_part", "response_part"), parts, strict=True)) if parts else {}
    assert train_on_responses_only(trainer, **named, last_response_only=last) is trainer
    trainer.train()
    assert_saw(trainer, tokenizer, TURNS[template], last)


def test_the_code_of_the_readme(tmp_path):
    readme = (DATA.parent / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(from premask import train_on_responses_only.*?)```", readme, re.DOTALL)
    tokenizer = tokenizer_for()
    dataset = Dataset.from_dict({"text": [tokenizer.apply_chat_template(c, tokenize=False) for c in CHATS]})
    trainer = sft_trainer(tokenizer, dataset, tmp_path)
    exec(compile(code, "README", "exec"), {"trainer": trainer})  # noqa: S102
    assert_saw(trainer, tokenizer, TURNS["chatml"])


def test_the_alpaca_notebook_which_formats_by_hand(tmp_path):
    tokenizer = tokenizer_for()
    texts = [ALPACA_PROMPT.format(c[0]["content"], c[1]["content"]) + tokenizer.eos_token for c in CHATS]
    trainer = sft_trainer(tokenizer, Dataset.from_dict({"text": texts}), tmp_path)
    train_on_responses_only(trainer, instruction_part=ALPACA[0], response_part=ALPACA[1])
    trainer.train()
    assert_saw(trainer, tokenizer, TURNS["alpaca"])


def test_a_stream(tmp_path):
    tokenizer = tokenizer_for()
    texts = [{"text": tokenizer.apply_chat_template(c, tokenize=False)} for c in CHATS]
    trainer = sft_trainer(tokenizer, IterableDataset.from_generator(lambda: iter(texts)), tmp_path)
    train_on_responses_only(trainer)
    trainer.train()
    assert_saw(trainer, tokenizer, TURNS["chatml"])


@pytest.mark.filterwarnings("ignore:.*flash:UserWarning")
@pytest.mark.parametrize("strategy", ["bfd", "wrapped"])
def test_packed_rows(strategy, tmp_path):
    tokenizer = tokenizer_for()
    dataset = Dataset.from_dict({"text": [tokenizer.apply_chat_template(c, tokenize=False) for c in CHATS]})
    trainer = sft_trainer(
        tokenizer, dataset, tmp_path, packing=True, packing_strategy=strategy, padding_free=strategy == "bfd"
    )
    train_on_responses_only(trainer)
    trainer.train()
    (batch,) = trainer.model.seen
    (ids,), (labels,) = batch["input_ids"], batch["labels"]
    assert labels == expected_labels(tokenizer, ids, TURNS["chatml"])
    assert sum(text == "<|im_end|>" for text in pieces(tokenizer, [i for i in labels if i != -100])) == 7


@pytest.mark.parametrize("collator", ["rebuilds labels", "ours"])
def test_the_trainer_of_transformers(collator, tmp_path):
    """Its usual collator makes labels of its own, which have to go."""
    tokenizer = tokenizer_for()
    rows = [{"input_ids": tokenizer.apply_chat_template(c)["input_ids"]} for c in CHATS]
    trainer = Trainer(
        model=model_for(tokenizer),
        processing_class=tokenizer,
        args=TrainingArguments(output_dir=str(tmp_path), **ARGUMENTS),
        train_dataset=Dataset.from_list(rows),
        eval_dataset={"first": Dataset.from_list(rows[:1]), "others": Dataset.from_list(rows[1:])},
        data_collator=ResponseOnlyCollator(tokenizer)
        if collator == "ours"
        else DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )
    if collator != "ours":
        train_on_responses_only(trainer)
        assert list(trainer.eval_dataset) == ["first", "others"]
        assert all("labels" in split.column_names for split in trainer.eval_dataset.values())
    trainer.train()
    assert_saw(trainer, tokenizer, TURNS["chatml"])


# The mistakes of the field


def trained(tokenizer, row, **options):
    """The text that is trained of a row (its text or ids)."""
    ids = tokenizer(row, add_special_tokens=False).input_ids if isinstance(row, str) else row
    labels = train_on_responses_only(None, tokenizer=tokenizer, return_function=True, **options)({"input_ids": [ids]})
    return "".join(text for text, i in zip(pieces(tokenizer, ids), labels["labels"][0], strict=True) if i != -100)


def rendered(tokenizer, *messages, **options):
    return tokenizer.apply_chat_template(list(messages), tokenize=False, **options)


def test_flat_arrays_and_markers_are_enough():
    tokenizer = tokenizer_for()
    rows = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in CHATS]
    rows = [tokenizer(text, add_special_tokens=False).input_ids for text in rows]
    offsets = np.cumsum([0, *map(len, rows)])
    labels, quoted = premask.mask_responses(
        np.concatenate(rows).astype(np.int32), offsets, premask.find_markers(tokenizer)
    )
    expected = [expected_labels(tokenizer, row, TURNS["chatml"]) for row in rows]
    assert labels.tolist() == [label for row in expected for label in row]
    assert not quoted.any()


def test_plain_text_markers_whose_ids_change_with_their_neighbours():
    tokenizer = tokenizer_for("alpaca")
    alone = tokenizer("### Response:\n", add_special_tokens=False).input_ids
    for answer in ("Yes.", "\nYes.", " Yes.", "1", ":", "\n\n\nYes"):
        text = rendered(tokenizer, *chat("Is it?", answer, "Sure?", "Quite.\n\n"))
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert trained(tokenizer, text) == "".join(
            piece
            for piece, label in zip(
                pieces(tokenizer, ids), expected_labels(tokenizer, ids, TURNS["alpaca"]), strict=True
            )
            if label != -100
        )
        if answer.startswith("\n"):
            assert not any(ids[n : n + len(alone)] == alone for n in range(len(ids) // 2))  # what others look for


def test_a_tool_turn_after_the_assistant_is_not_trained():
    tokenizer = AutoTokenizer.from_pretrained(str(DATA / "tokenizer"))
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
    text = rendered(
        tokenizer,
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "It is blue."},
        {"role": "assistant", "content": "Blue."},
    )
    assert trained(tokenizer, text) == (
        '<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call><|im_end|>Blue.<|im_end|>'
    )


def test_quoted_markers_begin_and_end_nothing():
    tokenizer = tokenizer_for()
    text = rendered(
        tokenizer,
        {"role": "user", "content": "What does <|im_start|>assistant\nmean? And <|im_start|>user\n?"},
        {
            "role": "assistant",
            "content": "After <|im_start|>user\n comes what you say, after <|im_start|>assistant\n I.",
        },
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": "Welcome"},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the function warns of nothing: it has no rows to name
        assert trained(tokenizer, text) == (
            "After <|im_start|>user\n comes what you say, after <|im_start|>assistant\n I.<|im_end|>Welcome<|im_end|>"
        )
    assert "mean?" in trained(tokenizer, text, mask="unsloth")


def test_a_turn_that_begins_with_a_line_break():
    tokenizer = tokenizer_for()
    text = rendered(tokenizer, *chat("One", "\nTwo", "Three", "\n\nFour"))
    ids = tokenizer(text, add_special_tokens=False).input_ids
    header = tokenizer("<|im_start|>assistant\n", add_special_tokens=False).input_ids
    assert not any(ids[n : n + len(header)] == header for n in range(len(ids)))
    assert trained(tokenizer, text) == "Two<|im_end|>Four<|im_end|>"  # the line breaks are one token with the header's


def test_rows_that_were_cut_short():
    tokenizer = tokenizer_for()
    ids = tokenizer.apply_chat_template(chat("One", "Two and three and four"))["input_ids"]
    assert trained(tokenizer, ids[:-4]) == "Two and three and"
    # A turn cut short with another row put behind it, and nothing that says where that one begins.
    assert trained(tokenizer, ids[:-4] + ids) == "Two and three andTwo and three and four<|im_end|>"


def test_padding_is_never_trained():
    tokenizer = tokenizer_for("alpaca")  # whose answers may end without a terminator
    ids = tokenizer(rendered(tokenizer, *chat("One", "Two")), add_special_tokens=False).input_ids[:-2]
    pad = tokenizer.pad_token_id
    assert (
        trained(tokenizer, [pad] * 3 + ids) == trained(tokenizer, ids + [pad] * 3) == trained(tokenizer, ids) == "Two"
    )
    mask = train_on_responses_only(None, tokenizer=tokenizer, return_function=True)
    row = {"input_ids": [ids + ids[-1:] * 2], "attention_mask": [[1] * len(ids) + [0] * 2]}
    assert mask(row)["labels"][0][-3:] == [ids[-1], -100, -100]


@pytest.mark.parametrize("told_by", ["seq_lengths", "position_ids"])
def test_examples_of_a_packed_row_are_masked_apart(told_by):
    tokenizer = tokenizer_for()
    rows = [tokenizer.apply_chat_template(c)["input_ids"] for c in CHATS[:3]]
    rows[0] = rows[0][:-5]  # cut short: its last turn must not go on in the next example
    packed = {
        "seq_lengths": [[*map(len, rows)]],
        "position_ids": [[n for row in rows for n in range(len(row))]],
    }
    mask = train_on_responses_only(None, tokenizer=tokenizer, return_function=True, last_response_only=True)
    apart = [label for row in rows for label in mask({"input_ids": [row]})["labels"][0]]
    assert mask({"input_ids": [rows[0] + rows[1] + rows[2]], told_by: packed[told_by]})["labels"] == [apart]
    assert sum(label != -100 for label in apart) > 10


class Bare:
    """As much of a trainer as the function needs."""

    def __init__(self, tokenizer, train, evaluation=None):
        self.processing_class, self.train_dataset, self.eval_dataset = tokenizer, train, evaluation
        self.args = TrainingArguments(use_cpu=True)


def rows_of(tokenizer, *chats):
    return Dataset.from_list([{"input_ids": tokenizer.apply_chat_template(c)["input_ids"]} for c in chats])


def test_rows_without_a_response_are_named():
    tokenizer = tokenizer_for()
    dataset = rows_of(tokenizer, CHATS[0], CHATS[0][:1], CHATS[1], CHATS[1][:1])
    trainer = Bare(tokenizer, dataset)
    with pytest.raises(DataError, match=r"train_dataset: rows 1, 3 of 4 would train on nothing"):
        train_on_responses_only(trainer)
    assert trainer.train_dataset is dataset
    with pytest.warns(UserWarning, match=r"train_dataset: left out rows 1, 3 of 4"):
        train_on_responses_only(trainer, no_response="drop")
    assert trainer.train_dataset["input_ids"] == [dataset["input_ids"][n] for n in (0, 2)]
    with pytest.raises(DataError, match=r"eval_dataset: rows 0, 1 of 2 .* Check that response_part"):
        train_on_responses_only(
            Bare(tokenizer, None, rows_of(tokenizer, *[c[:1] for c in CHATS[:2]])), no_response="drop"
        )
    stream = dataset.to_iterable_dataset()
    with pytest.raises(DataError, match=r"train_dataset: rows 1, 3 of the stream: no response"):
        train_on_responses_only(Bare(tokenizer, stream))


def test_rows_cut_at_the_same_length_say_so():
    tokenizer = tokenizer_for()
    dataset = rows_of(tokenizer, *CHATS, *CHATS, chat("What " * 40, "Yes")).map(
        lambda row: {"input_ids": row["input_ids"][:40]}
    )
    with pytest.raises(DataError, match=r"row 8 of 9 would .* It is 40 tokens long, as long as any: .*max_length"):
        train_on_responses_only(Bare(tokenizer, dataset))


def test_a_dataset_keeps_its_columns_types_format_and_labels():
    tokenizer = tokenizer_for()
    dataset = rows_of(tokenizer, *CHATS).add_column("name", list("abcd"))
    dataset = dataset.map(lambda row: {"labels": [-100 if n % 2 else i for n, i in enumerate(row["input_ids"])]})
    dataset = dataset.with_format("torch", columns=["input_ids", "labels"])
    trainer = train_on_responses_only(Bare(tokenizer, dataset))
    masked = trainer.train_dataset
    assert masked.features == dataset.features
    assert masked.format["type"] == "torch"
    assert set(masked.format["columns"]) == {"input_ids", "labels"}
    for row, plain in zip(masked, dataset, strict=True):
        ids = plain["input_ids"].tolist()
        wanted = expected_labels(tokenizer, ids, TURNS["chatml"])
        assert row["labels"].tolist() == [-100 if n % 2 else label for n, label in enumerate(wanted)]


def test_shuffled_rows_keep_their_columns_and_their_split():
    tokenizer = tokenizer_for()
    dataset = rows_of(tokenizer, *CHATS).add_column("number", [0, 1, 2, 3])
    dataset = Dataset(dataset.data, split="train").shuffle(seed=3)
    masked = train_on_responses_only(Bare(tokenizer, dataset)).train_dataset
    assert masked.column_names == ["input_ids", "number", "labels"]
    assert masked.split == "train"
    assert masked["number"][:] == dataset["number"][:] != [0, 1, 2, 3]
    for row, plain in zip(masked, dataset, strict=True):
        assert row["input_ids"] == plain["input_ids"]
        assert row["labels"] == expected_labels(tokenizer, plain["input_ids"], TURNS["chatml"])


def test_quotations_are_told_with_their_rows():
    tokenizer = tokenizer_for()
    quoting = chat("What is <|im_start|>assistant\n?", "A header")
    with pytest.warns(UserWarning, match=r"1 headers of the assistant stand where .*\(row 1\)"):
        train_on_responses_only(Bare(tokenizer, rows_of(tokenizer, CHATS[0], quoting)))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_the_function_takes_lists_arrays_and_tensors(kind):
    tokenizer = tokenizer_for()
    mask = train_on_responses_only(None, tokenizer=tokenizer, return_function=True)
    ids = tokenizer.apply_chat_template(CHATS[0])["input_ids"]
    labels = mask({"input_ids": kind([ids, ids])})["labels"]
    assert isinstance(labels, type(kind([ids])))
    assert [list(map(int, row)) for row in labels] == [expected_labels(tokenizer, ids, TURNS["chatml"])] * 2


def test_texts_that_are_never_trained():
    tokenizer = tokenizer_for()
    text = rendered(tokenizer, *chat("Think.", "<think>Hm.</think>Yes."))
    assert trained(tokenizer, text, mask_out_tokens=["</think>"]) == "<think>Hm.Yes.<|im_end|>"


def test_the_final_channel_alone():
    """A response part that goes on beyond the template's header trains what stands behind it, and nothing else."""
    tokenizer = tokenizer_for()
    text = rendered(tokenizer, *chat("One", "Note: two", "Three", "Say: four"))
    parts = {"instruction_part": CHATML[0], "response_part": CHATML[1] + "Say:"}
    assert trained(tokenizer, text, **parts) == " four<|im_end|>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instruction_part": "x"}, "Give both instruction_part and response_part"),
        ({"mask": "best"}, 'mask: expected "sampled" or "unsloth", found'),
        ({"instruction_part": "x", "response_part": ""}, "response_part: expected a text that has tokens"),
    ],
)
def test_calls_that_cannot_be_right(options, message):
    with pytest.raises(UsageError, match=message):
        train_on_responses_only(None, tokenizer=tokenizer_for(), return_function=True, **options)


def test_a_tokenizer_without_template_or_a_trainer_without_tokenizer():
    tokenizer = tokenizer_for()
    tokenizer.chat_template = None
    with pytest.raises(UsageError, match="no chat template to find markers in"):
        train_on_responses_only(None, tokenizer=tokenizer, return_function=True)
    with pytest.raises(UsageError, match="The trainer has no tokenizer"):
        train_on_responses_only(Bare(None, None))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"]}, "expected tokenized rows with a column input_ids, found text"),
        ({"input_ids": [["a"]]}, "input_ids: expected lists of integers"),
        ({"input_ids": [[1], [1, None]]}, r"row 1: input_ids: expected a list of integers, found null"),
        ({"input_ids": [[1], [9999]]}, r"row 1: expected ids from 0 to 4,095, found 9999"),
        ({"input_ids": [[1], [2**32 + 5]]}, r"row 1: expected ids from 0 to 4,095, found 4294967301"),
        ({"input_ids": [[1], [2]], "labels": [[1], [-200]]}, r"row 1: expected labels that are ids, or -100 .* -200"),
        ({"input_ids": []}, "expected rows, found none"),
        ({"input_ids": [[1], [2, 3]], "labels": [[1], [2]]}, r"row 1: expected as many labels as input_ids \(2\)"),
        ({"input_ids": [[1, 2]], "seq_lengths": [[1, 2]]}, r"row 0: expected seq_lengths that add up to its 2 tokens"),
    ],
)
def test_rows_that_do_not_fit_together(columns, message):
    with pytest.raises(DataError, match="train_dataset: " + message):
        train_on_responses_only(Bare(tokenizer_for(), Dataset.from_dict(columns)))


def test_rows_are_numbered_over_all_batches():
    rows = [{"input_ids": [1, 2]}] * 1500 + [{"input_ids": [-1]}]
    with pytest.raises(DataError, match=r"train_dataset: row 1,500: expected ids"):
        train_on_responses_only(Bare(tokenizer_for(), Dataset.from_list(rows)))


def test_something_else_than_a_dataset():
    with pytest.raises(UsageError, match=r"expected a datasets.Dataset or IterableDataset, found list"):
        train_on_responses_only(Bare(tokenizer_for(), [1]))


# The collator and the templates


def test_the_collator_names_rows_without_a_response():
    tokenizer = tokenizer_for()
    rows = list(rows_of(tokenizer, CHATS[0], CHATS[0][:1]))
    with pytest.raises(DataError, match="row 1 of the batch would train on nothing"):
        ResponseOnlyCollator(tokenizer)(rows)
    with pytest.warns(UserWarning, match="left out row 1 of a batch"):
        batch = ResponseOnlyCollator(tokenizer, no_response="drop")(rows)
    assert batch["labels"].tolist() == [expected_labels(tokenizer, rows[0]["input_ids"], TURNS["chatml"])]


def test_the_collator_around_another():
    tokenizer = tokenizer_for()
    collate = ResponseOnlyCollator(tokenizer, *CHATML, last_response_only=True, collator=lambda rows: rows)
    (row,) = collate(list(rows_of(tokenizer, CHATS[0])))
    assert row["labels"] == expected_labels(tokenizer, row["input_ids"], TURNS["chatml"], last=True)


@pytest.mark.parametrize("name", ["llama-3.1", "llama-3", "chatml", "alpaca", "zephyr"])
def test_named_templates_go_onto_a_tokenizer(name):
    tokenizer = tokenizer_for("llama-3.1")
    assert premask.get_chat_template(tokenizer, name) is tokenizer
    assert "Hello" in tokenizer.apply_chat_template(chat("Hello", "Hi"), tokenize=False)


def test_templates_whose_tokens_are_missing_are_refused():
    tokenizer = AutoTokenizer.from_pretrained(str(DATA / "tokenizer"))
    with pytest.raises(
        UsageError, match=r"writes <\|start_header_id\|>, <\|end_header_id\|>, <\|eot_id\|>, which this"
    ):
        get_chat_template(tokenizer, "llama-3.1")
    with pytest.raises(UsageError, match=r"expected one of alpaca, chatml, .* found 'gemma'"):
        get_chat_template(tokenizer, "gemma")
    tokenizer.eos_token = None
    with pytest.raises(UsageError, match="ends each answer with eos_token"):
        get_chat_template(tokenizer, "alpaca")
