"""The loss on the validation split, in all and by source; and answers to held-out prompts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from premask.dtypes import IGNORE_INDEX
from premask.feed.batch import Batch
from premask.feed.loader import Loader
from premask.store.reader import Split
from premask_trainer.dataset import Sources
from premask_trainer.model import Model
from premask_trainer.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean losses per trained token, weighted as in training."""

    loss: float
    by_source: dict[str, float]


def evaluate(model: Model, loader: Loader, sources: Sources, ranks: Ranks) -> Evaluation:
    """The loss over one pass of `loader`, whose packs the ranks share."""
    sums = torch.zeros(2, len(sources.names), dtype=torch.float64, device=model.device)
    loader.position = 0
    with model.evaluating():
        for step in loader:
            for batch in step.batches:
                _add(sums, model, batch, sources)
    ranks.sum([sums])
    losses, weights = sums.cpu()
    by_source = {
        name: (loss / weight).item()
        for name, loss, weight in zip(sources.names, losses, weights, strict=True)
        if weight
    }
    return Evaluation((losses.sum() / weights.sum()).item(), by_source)


def _add(sums: Tensor, model: Model, batch: Batch, sources: Sources) -> None:
    """Add the losses and weights of a batch to `sums` `[2, S]`, by source."""
    found = model.head.loss(model.hidden(batch), batch, 1.0).token_loss.double()
    weights = torch.ones_like(found) if batch.weights is None else batch.weights.double()
    of_example = torch.from_numpy(sources.of(batch.source_rows)).to(found.device)
    example = torch.searchsorted(batch.cu_seqlens, batch.rows.int(), right=True) - 1
    source = of_example[example]
    sums[0].index_add_(0, source, found * weights)
    sums[1].index_add_(0, source, weights)


@dataclass(frozen=True, slots=True)
class Prompt:
    """A held-out example up to its first answer: it ends with the generation prompt, as the template wrote it."""

    source_row: int
    ids: Tensor
    """`[P]` int64"""

    answer: Tensor
    """`[A]` int64: what the data says, terminator included."""


def prompts_of(split: Split, count: int) -> Iterator[Prompt]:
    """Prompts from the first `count` examples of a split."""
    for pack in split:
        start = 0
        for length, row in zip(pack.seq_lengths.tolist(), pack.source_rows.tolist(), strict=True):
            ids = torch.tensor(pack.input_ids[start : start + length]).long()
            trained = torch.tensor(pack.labels[start : start + length] != IGNORE_INDEX)
            first = int(trained.int().argmax())
            end = first + int(trained[first:].int().cumprod(0).sum())
            yield Prompt(row, ids[:first], ids[first:end])
            start, count = start + length, count - 1
            if count == 0:
                return


def answer(model: Model, tokenizer: Any, prompt: Prompt, limit: int) -> dict[str, Any]:
    """What the model says, greedily, in at most `limit` tokens, beside what the data says."""
    stops = {int(prompt.answer[-1]), tokenizer.eos_token_id} - {None}
    ids = prompt.ids[None].to(model.device)
    with model.evaluating():
        written = model.causal.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=limit,
            do_sample=False,
            use_cache=True,
            eos_token_id=sorted(stops),
            pad_token_id=min(stops),
        )[0, len(prompt.ids) :]
    return {
        "source_row": prompt.source_row,
        "prompt": tokenizer.decode(prompt.ids),
        "answer": tokenizer.decode(written),
        "expected": tokenizer.decode(prompt.answer),
    }
