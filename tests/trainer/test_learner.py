"""Updates: accumulation is one big batch, weights count, guards guard."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import premask
from premask_trainer.config import TrainConfig, config_from
from premask_trainer.dataset import sources_of
from premask_trainer.evaluation import answer, evaluate, prompts_of
from premask_trainer.guards import MOST_SKIPPED, Guards
from premask_trainer.loop import Learner
from premask_trainer.model import load_model
from premask_trainer.progress import curve
from premask_trainer.ranks import Ranks
from premask_trainer.records import Records

ALONE = Ranks(0, 1, torch.device("cpu"))


def learner_of(llama, **options):
    options = {"quantize": "none", "learning_rate": 1e-2, "warmup": 0.0, **options}
    config = TrainConfig(data="-", model=str(llama), out="-", **options)
    return Learner(config, load_model(config, ALONE.device), ALONE, steps=10)


def weights_after(learner, steps):
    """The losses and norms of the updates, and the weights after them."""
    updates = [learner.update(step, stop=False) for step in steps]
    return updates, torch.cat([tensor.detach().reshape(-1) for tensor in learner.parameters])


def test_accumulated_gradients_are_those_of_one_batch(llama, data):
    prepared, found = premask.open(data), []
    for micro in (1, 2, 4):
        loader = prepared.loader(batch_size=4, micro_batch_size=micro, shuffle=False)
        found.append(weights_after(learner_of(llama, micro_batch_size=micro), [loader.step(0), loader.step(1)]))
    for updates, weights in found[1:]:
        for update, first in zip(updates, found[0][0], strict=True):
            assert update.loss == pytest.approx(first.loss, rel=1e-5)
            assert update.norm == pytest.approx(first.norm, rel=1e-4)
        # Adam divides by the gradient's own size, which blows up the rounding of the smallest ones.
        assert (weights - found[0][1]).norm() < 1e-2 * found[0][1].norm()


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_the_loss_falls(llama, data, optimizer):
    step = premask.open(data).loader(batch_size=4, micro_batch_size=4).step(0)
    learner = learner_of(llama, optimizer=optimizer, schedule="constant")
    losses = [learner.update(step, stop=False).loss for _ in range(6)]
    assert losses[-1] < losses[0] - 0.3 and losses == sorted(losses, reverse=True)


def test_gradients_are_clipped_and_rates_scheduled(llama, data):
    step = premask.open(data).loader(batch_size=2, micro_batch_size=2).step(0)
    learner = learner_of(llama, max_grad_norm=0.01, warmup=0.2, schedule="linear", learning_rate=1.0)
    seen = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: seen.append(torch.cat([p.grad.reshape(-1) for p in learner.parameters]).norm().item())
    )
    rates = [learner.update(step, stop=False).learning_rate for _ in range(4)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.875])  # 2 of 10 steps of warm-up, then down to 0
    assert seen == pytest.approx([0.01] * 4, rel=1e-3)


def test_a_rank_without_packs_takes_part_with_nothing(llama, data):
    step = premask.open(data).loader(batch_size=1).step(0)
    learner = learner_of(llama)
    update = learner.update(replace(step, batches=()), stop=True)
    assert (update.loss, update.norm, update.stop) == (0.0, 0.0, True)


def test_gradients_that_are_no_numbers_update_nothing_and_then_stop_the_run(llama, data):
    step = premask.open(data).loader(batch_size=1).step(0)
    learner = learner_of(llama)
    broken = replace(step, denominator=0.0 * step.denominator + 1e-45)  # the loss overflows to infinity
    before = torch.cat([tensor.detach().clone().reshape(-1) for tensor in learner.parameters])
    for _ in range(MOST_SKIPPED - 1):
        learner.update(broken, stop=False)
    assert torch.equal(before, torch.cat([tensor.detach().reshape(-1) for tensor in learner.parameters]))
    with pytest.raises(premask.DataError, match=r"expected finite gradients, found loss inf.*lower learning_rate"):
        learner.update(broken, stop=False)


@given(st.lists(st.floats(0.5, 3), min_size=1, max_size=30))
def test_divergence_is_a_smoothed_loss_far_above_its_lowest(losses):
    guards, smoothed, stopped = Guards(2.0), [], False
    for step, loss in enumerate(losses):
        smoothed.append(loss if not smoothed else 0.9 * smoothed[-1] + 0.1 * loss)
        expected = smoothed[-1] > 2.0 * min(smoothed)
        try:
            guards = Guards(**json.loads(json.dumps(guards.state())))  # as through a checkpoint
            assert guards.watch(step, loss, 1.0)
        except premask.DataError as error:
            stopped = True
            assert f"step {step}" in str(error) and "2 times its lowest" in str(error)
        assert stopped == expected
        if stopped:
            return


def test_evaluation_is_the_mean_by_token_in_all_and_by_source(llama, data):
    prepared = premask.open(data)
    learner = learner_of(llama)
    loader = prepared.loader("validation", batch_size=2, micro_batch_size=2, shuffle=False)
    found = evaluate(learner.model, loader, sources_of(prepared), ALONE)
    sums = {}
    first_rows = {}
    for partition in prepared.manifest["partitions"]:
        first_rows[partition["first_row"]] = prepared.manifest["sources"][partition["source"]]["name"]
    learner.model.peft.eval()
    for pack in prepared["validation"]:
        start = 0
        for length, row in zip(pack.seq_lengths.tolist(), pack.source_rows.tolist(), strict=True):
            name = first_rows[max(first for first in first_rows if first <= row)]
            where = slice(start, start + length)
            ids, labels, weights = map(
                torch.tensor, (pack.input_ids[where], pack.labels[where], pack.loss_weights[where])
            )
            with torch.no_grad():
                logits = learner.model.causal(input_ids=ids[None].long(), use_cache=False).logits[0]
            losses = torch.nn.functional.cross_entropy(logits[:-1], labels[1:].long(), reduction="none")
            total, weight = sums.get(name, (0.0, 0.0))
            share = weights[1:] * (labels[1:] != -100)
            sums[name] = total + float((losses * share).sum()), weight + float(share.sum())
            start += length
    assert found.by_source == pytest.approx({name: total / weight for name, (total, weight) in sums.items()}, rel=1e-5)
    whole = [sum(column) for column in zip(*sums.values(), strict=True)]
    assert found.loss == pytest.approx(whole[0] / whole[1], rel=1e-5)
    assert len(found.by_source) > 1


def test_prompts_end_with_the_generation_prompt_of_the_template(llama, data):
    from transformers import AutoTokenizer

    tokenizer, learner = AutoTokenizer.from_pretrained(llama), learner_of(llama)
    prompts = list(prompts_of(premask.open(data)["validation"], 3))
    assert len(prompts) == 3
    for prompt in prompts:
        assert tokenizer.decode(prompt.ids).endswith("<|im_start|>assistant\n")
        assert tokenizer.decode(prompt.answer).endswith("<|im_end|>")
    said = answer(learner.model, tokenizer, prompts[0], 5)
    assert said["expected"] == tokenizer.decode(prompts[0].answer) and said["source_row"] == prompts[0].source_row
    ids = prompts[0].ids[None]
    for _ in range(5):  # greedy, without a cache
        with torch.no_grad():
            ids = torch.cat(
                [ids, learner.model.causal(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1
            )
    assert tokenizer.decode(ids[0, len(prompts[0].ids) :]).startswith(said["answer"])
    assert learner.model.peft.training


def test_a_config_is_checked_and_layered(tmp_path):
    file = tmp_path / "train.yaml"
    file.write_text("data: a\nmodel: b\nout: c\nlearning_rate: 1e-3\nepochs: 3\n")
    config = config_from({"epochs": 2, "max_steps": None}, file, ["lora_r=4", "epochs=5"])
    assert (config.data, config.learning_rate, config.epochs, config.lora_r) == ("a", 1e-3, 2, 4)
    with pytest.raises(premask.UsageError, match="the training config is wrong in 2 places") as error:
        config_from({"data": "a", "model": "b"}, None, ["lora_rank=4"])
    assert "out: missing; give --out" in str(error.value)
    assert "lora_rank (--set): no such option; did you mean lora_r?" in str(error.value)


def test_the_curve_shows_where_the_loss_went():
    picture = curve([4.0] * 30 + [2.0] * 30, width=20, height=4).splitlines()
    assert picture[0] == "   4.000 " + "█" * 10 and picture[-1] == "   2.000 " + "█" * 10 + "▁" * 10
    assert curve([1.5]).splitlines()[-1] == "   1.500 ▁"


def test_tensorboard_gets_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    records = Records(tmp_path, {}, tensorboard=True)
    records.metrics({"step": 1, "loss": 2.0, "validation": {"by_source": {"a": 1.0}}})
    records.close()
    assert list((tmp_path / "tensorboard").iterdir())


def test_without_tensorboard_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(premask.UsageError, match="needs tensorboard; `pip install tensorboard`"):
        Records(tmp_path, {}, tensorboard=True)


def test_records_go_on_behind_those_of_the_checkpoint(tmp_path):
    first = Records(tmp_path, {}, tensorboard=False)
    first.metrics({"step": 1})
    sizes = first.sizes()
    first.metrics({"step": 2, "loss": 1.0})  # not in the checkpoint: its process was killed
    first.close()
    second = Records(tmp_path, sizes, tensorboard=False)
    second.metrics({"step": 2, "loss": 2.0})
    second.close()
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 1},
        {"step": 2, "loss": 2.0},
    ]
