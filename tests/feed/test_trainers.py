"""The packs in the trainers that people have: what a model sees, and that examples do not see each other."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Features, Sequence, Value
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from premask.feed.collate import PackCollator

OURS = Path(__file__).parents[2] / "data/tokenizer"
SHAPE = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
}
FEATURES = Features(
    {
        "input_ids": Sequence(Value("int32")),
        "labels": Sequence(Value("int32")),
        "position_ids": Sequence(Value("int32")),
        "seq_lengths": Sequence(Value("int32")),
        "source_rows": Sequence(Value("int64")),
    }
)
PACKS = [[7, 19, 1, 30], [40, 5], [12, 12, 12], [50]]
"""Lengths of the examples of every pack."""


def model_of(kind):
    set_seed(0)
    config, model = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}[kind]
    return model(config(**SHAPE, initializer_range=0.3, attn_implementation="sdpa")).float().eval()


def prepared():
    """Four packs in the layout of the shards: the second half of every example is trained."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for number, lengths in enumerate(PACKS):
        ids = torch.randint(0, 4000, (sum(lengths),), generator=generator).tolist()
        positions = [place for length in lengths for place in range(length)]
        trained = [place >= max(1, length // 2) for length in lengths for place in range(length)]
        labels = [token if keep else -100 for token, keep in zip(ids, trained, strict=True)]
        rows.append(
            {
                "input_ids": ids,
                "labels": labels,
                "position_ids": positions,
                "seq_lengths": lengths,
                "source_rows": [100 * number + place for place in range(len(lengths))],
            }
        )
    return Dataset.from_list(rows, features=FEATURES)


def apart(model, packs):
    """Logits of every example alone, put end to end: `[T, V]`."""
    with torch.no_grad():
        pieces = [ids for pack in packs for ids in torch.tensor(pack["input_ids"]).split(pack["seq_lengths"])]
        return torch.cat([model(input_ids=piece[None], use_cache=False).logits[0] for piece in pieces])


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_examples_of_a_pack_do_not_see_each_other(kind):
    model, packs = model_of(kind), list(prepared())
    batch = PackCollator()(packs)
    alone = apart(model, packs)
    with torch.no_grad():
        packed = model(**batch, use_cache=False).logits[0]
        torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)

        # The two settings that break it without a word, and the reason for what the collator leaves out.
        ones = torch.ones_like(batch["input_ids"])
        masked = model(**batch, attention_mask=ones, use_cache=False).logits[0]
        cached = model(**batch, use_cache=True).logits[0]
    first = PACKS[0][0]  # the first example has nobody before it
    for broken in (masked, cached):
        torch.testing.assert_close(broken[:first], alone[:first], rtol=1e-4, atol=1e-5)
        assert (broken - alone).abs().max() > 0.05


def watched(model):
    """What the model's forward passes will be given: a list that fills while it trains."""
    seen = []

    def outside(_, args, kwargs):
        seen.append({name: kwargs[name].clone() for name in ("input_ids", "labels", "position_ids")})
        assert kwargs.get("attention_mask") is None

    def inside(_, args, kwargs):
        assert torch.equal(kwargs["position_ids"], seen[-1]["position_ids"])
        assert kwargs.get("attention_mask") is None
        assert not kwargs.get("use_cache", model.config.use_cache)

    model.register_forward_pre_hook(outside, with_kwargs=True)
    model.model.register_forward_pre_hook(inside, with_kwargs=True)
    return seen


def loss_of_examples_alone(model, batch):
    """Mean loss over the trained tokens of a batch, from logits of every example alone."""
    ends = [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), batch["labels"].shape[1]]
    lengths = [end - start for start, end in pairwise(ends)]
    logits = apart(model, [{"input_ids": batch["input_ids"][0].tolist(), "seq_lengths": lengths}])
    return torch.nn.functional.cross_entropy(logits[:-1], batch["labels"][0, 1:]).item()


def assert_saw_packs(seen, batch_size):
    """Every batch was `batch_size` whole packs end to end, and together they were the dataset, once."""
    packs = {tuple(pack["input_ids"]): pack for pack in prepared()}
    for batch in seen:
        assert all(tensor.shape[0] == 1 and tensor.dtype == torch.int64 for tensor in batch.values())
        rows, start = 0, 0
        columns = {name: tensor[0].tolist() for name, tensor in batch.items()}
        while start < len(columns["input_ids"]):
            ids = next(ids for ids in packs if columns["input_ids"][start : start + len(ids)] == list(ids))
            pack, end = packs.pop(ids), start + len(ids)
            assert columns["labels"][start:end] == pack["labels"]
            assert columns["position_ids"][start:end] == pack["position_ids"]
            rows, start = rows + 1, end
        assert rows == batch_size
    assert not packs


ARGUMENTS = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,  # which TRL would switch on
    "logging_steps": 1,
    "disable_tqdm": True,
}


def test_hugging_face_trainer_takes_the_packs(tmp_path):
    model = model_of("llama")
    seen = watched(model)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(tmp_path), **ARGUMENTS),
        train_dataset=prepared(),
        data_collator=PackCollator(),
    )
    trainer.train()
    assert_saw_packs(seen, batch_size=2)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(
        loss_of_examples_alone(model_of("llama"), seen[0]), rel=1e-4
    )


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")  # TRL 1.16's own default
def test_trl_takes_the_packs(tmp_path):
    from trl import SFTConfig, SFTTrainer

    model = model_of("llama")
    seen = watched(model)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=str(tmp_path), padding_free=True, packing=False, max_length=None, **ARGUMENTS),
        train_dataset=prepared(),
        processing_class=PreTrainedTokenizerFast.from_pretrained(str(OURS)),
    )
    trainer.train()
    assert_saw_packs(seen, batch_size=2)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(
        loss_of_examples_alone(model_of("llama"), seen[0]), rel=1e-4
    )
