"""One step of ours is one step of plain transformers: unpacked, unfused, unchecked, on the same examples."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tiny import CONFIGS, save_model
from torch.nn.functional import cross_entropy

import premask
from premask_trainer.config import TrainConfig
from premask_trainer.model import load_model
from premask_trainer.selftest import check_isolation


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {kind: save_model(kind, folder / kind) for kind in CONFIGS}


def adapted(folder, **options):
    """A model with adapters that do something from the start."""
    config = TrainConfig(data="-", model=str(folder), out="-", target_modules="all-linear", **options)
    model = load_model(config, torch.device("cpu"))
    torch.manual_seed(1)
    for name, tensor in model.trained():
        if "lora_B" in name:
            torch.nn.init.normal_(tensor, std=0.1)
    model.peft.train()
    return model


def gradients(model, loss):
    """The gradients of all adapters, by name."""
    loss.backward()
    found = {name: tensor.grad.clone() for name, tensor in model.trained()}
    model.peft.zero_grad(set_to_none=True)
    return found


def plain_loss(model, step):
    """The weighted mean loss over all trained tokens, from the model's own logits of every example alone."""
    total = torch.zeros(())
    for batch in step.batches:
        weight = torch.zeros(len(batch)).index_put_((batch.rows + 1,), batch.weights)
        bounds = batch.cu_seqlens.tolist()
        for start, end in pairwise(bounds):
            ids = batch.ids[start:end].long()
            logits = model.causal(input_ids=ids[None], use_cache=False).logits[0].float()
            losses = cross_entropy(logits[:-1], ids[1:], reduction="none")
            total = total + (losses * weight[start + 1 : end]).sum() / step.denominator
    return total


def our_loss(model, step):
    return sum(model.head.loss(model.hidden(batch), batch, step.denominator).loss for batch in step.batches)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_loss_and_gradients_are_those_of_plain_transformers(kind, quantize, folders, data):
    model = adapted(folders[kind], quantize=quantize)
    assert model.causal.config._attn_implementation == ("eager" if kind == "gemma2" else "sdpa")
    (four_bit,) = {type(model.causal.base_model.layers[0].mlp.up_proj.base_layer).__name__ == "Linear4bit"}
    assert four_bit == (quantize == "nf4")
    steps = premask.open(data).loader(batch_size=4, micro_batch_size=3)
    step = next(step for step in steps if step.denominator != step.trained)  # weights that matter
    assert len(step.batches) == 2 and max(len(batch.source_rows) for batch in step.batches) > 2
    expected, found = plain_loss(model, step), our_loss(model, step)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    wanted, ours = gradients(model, expected), gradients(model, found)
    assert len(ours) == 2 * 2 * 7  # two layers, seven matrices, A and B
    for name, gradient in wanted.items():
        assert (ours[name] - gradient).norm() <= 1e-4 * gradient.norm(), name
    assert check_isolation(model, premask.open(data)["train"]) < 1e-5


def test_examples_that_see_each_other_stop_the_run(folders, data, monkeypatch):
    model = adapted(folders["llama"], quantize="none")

    def cached(self, batch):
        decoder = self.causal.base_model
        return decoder(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=True).last_hidden_state

    monkeypatch.setattr(type(model), "hidden", cached)
    with pytest.raises(
        premask.UsageError, match=r"self-test: .* in example [123] of 4: examples see each other .*sdpa"
    ):
        check_isolation(model, premask.open(data)["train"])


def test_a_rule_for_logits_that_is_not_known_stops_the_run(folders, data):
    model = adapted(folders["gemma2"], quantize="none")
    ignorant = replace(model, head=replace(model.head, softcap=None))
    with pytest.raises(premask.UsageError, match="example 0 of 4: the loss does not know what this model does"):
        check_isolation(ignorant, premask.open(data)["train"])


def test_evaluation_leaves_the_quantised_weights_alone(folders, data):
    model = adapted(folders["llama"], quantize="nf4")
    step = premask.open(data).loader(batch_size=1).step(0)
    before = our_loss(model, step).item()
    check_isolation(model, premask.open(data)["train"])
    assert our_loss(model, step).item() == before


def test_what_a_model_cannot_do_is_said(folders):
    with pytest.raises(premask.UsageError, match=r"target_modules: .*nothing"):
        load_model(
            TrainConfig(data="-", model=str(folders["llama"]), out="-", quantize="none", target_modules=["nothing"]),
            torch.device("cpu"),
        )
    with pytest.raises(premask.UsageError, match="leave it out"):
        load_model(
            TrainConfig(data="-", model=str(folders["llama"]), out="-", quantize="none", target_modules=["lm_head"]),
            torch.device("cpu"),
        )
    with pytest.raises(premask.UsageError, match=r"model .*missing: cannot be loaded"):
        load_model(TrainConfig(data="-", model=str(folders["llama"] / "missing"), out="-"), torch.device("cpu"))
    with pytest.raises(premask.UsageError, match="precision: expected bf16 or fp32 on a CPU"):
        load_model(TrainConfig(data="-", model="-", out="-", precision="fp16"), torch.device("cpu"))
