"""Before the first step: does the model see each example alone, and is our loss the loss of its own logits?

A few examples go through the model twice: end to end, as in training, and each by itself through the model's own
`forward`. Both must give the same logits. An attention that crosses examples, a rule for logits that we do not know, or
a kernel that takes cumulative lengths for something else, all show here, and none of them shows in a loss curve.
"""

import torch
from torch import Tensor

from premask.errors import UsageError
from premask.feed.batch import Batch
from premask.store.reader import Split
from premask_trainer.model import Model

EXAMPLES = 4
LENGTH = 128
"""Tokens taken of an example, at most."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.03}
"""Of the difference's root mean square, as a share of the logits' own: several times what rounding does."""


def check_isolation(model: Model, split: Split) -> float:
    """Compare packed and unpacked logits, and return their relative difference.

    Raises UsageError where it is more than rounding explains.
    """
    examples = _examples(split)
    with model.evaluating():
        packed = model.head.logits(model.hidden(_batch(examples, model.device))).float()[0]
        alone = [model.causal(input_ids=ids[None].to(model.device), use_cache=False).logits[0] for ids in examples]
    parts = zip(alone, torch.split(packed, [len(ids) for ids in examples]), strict=True)
    apart = [_spread(own.float() - found) / max(_spread(own.float()), 1e-6) for own, found in parts]
    wrong = [number for number, difference in enumerate(apart) if not difference <= TOLERANCE[model.dtype]]  # NaN too
    if wrong:
        # Nobody stands before the first example, so that there it cannot be the attention.
        cause = "examples see each other" if wrong[0] else "the loss does not know what this model does to its logits"
        raise UsageError(
            "self-test: expected the logits of packed examples to be those of each alone, found them "
            f"{apart[wrong[0]]:.1%} apart in example {wrong[0]} of {len(examples)}: {cause} (attention "
            f"{model.causal.config._attn_implementation}); try --set attention=sdpa, or eager"
        )
    return max(apart)


def _spread(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _examples(split: Split) -> list[Tensor]:
    """Beginnings of the first examples of a split; of two tokens at least, so that there is a position to get wrong."""
    found: list[Tensor] = []
    for pack in split:
        for ids in torch.split(torch.tensor(pack.input_ids), pack.seq_lengths.tolist()):
            found += [ids[:LENGTH].long()] if len(ids) > 1 else []
            if len(found) == EXAMPLES:
                return found
    return found


def _batch(examples: list[Tensor], device: torch.device) -> Batch:
    lengths = torch.tensor([len(ids) for ids in examples])
    batch = Batch(
        ids=torch.cat(examples).int(),
        rows=torch.zeros(0, dtype=torch.int64),
        cu_seqlens=torch.cat([torch.zeros(1), lengths.cumsum(0)]).int(),
        max_seqlen=int(lengths.max()),
        token_weights=None,
        source_rows=lengths.numpy(),
    )
    return batch.to(device)
