"""The loop: one update of the weights, exactly as if all packs of the step were one batch on one device."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from premask.feed.loader import Loader, Step
from premask_trainer.config import TrainConfig
from premask_trainer.guards import Guards
from premask_trainer.model import Model
from premask_trainer.optimizer import make_optimizer, make_schedule
from premask_trainer.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Update:
    """What one step did."""

    loss: float
    """Mean over the trained tokens of all ranks, weighted."""

    norm: float
    """Of the gradients, before they were clipped."""

    learning_rate: float
    stop: bool
    """Some rank was asked to stop."""


class Learner:
    """The trained weights, and all that updates them."""

    def __init__(self, config: TrainConfig, model: Model, ranks: Ranks, steps: int) -> None:
        self.model, self.ranks, self.seed, self.max_norm = model, ranks, config.seed, config.max_grad_norm
        self.parameters: list[nn.Parameter] = [tensor for _, tensor in model.trained()]
        ranks.broadcast([tensor.data for tensor in self.parameters])
        self.optimizer = make_optimizer(config, self.parameters, model.device)
        self.schedule = make_schedule(config, self.optimizer, steps)
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=model.dtype == torch.float16)
        self.guards = Guards(config.divergence)

    @property
    def training(self) -> dict[str, Any]:
        """What a checkpoint holds beside the weights, by name."""
        return {"optimizer": self.optimizer, "schedule": self.schedule, "scaler": self.scaler}

    def update(self, step: Step, stop: bool) -> Update:
        """Train one step; `stop` is whether this rank was asked to. DataError where a guard stops the run."""
        entropy = np.random.SeedSequence([self.seed, step.number, self.ranks.rank])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]))  # dropout
        loss = self._backward(step)
        asked = torch.tensor(float(stop), device=loss.device)
        for parameter in self.parameters:
            if parameter.grad is None:  # no pack of this step came to this rank
                parameter.grad = torch.zeros_like(parameter)
        self.ranks.sum([loss, asked, *(parameter.grad for parameter in self.parameters if parameter.grad is not None)])
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.max_norm)
        update = Update(loss.item(), norm.item(), self.schedule.get_last_lr()[0], asked.item() > 0)
        if self.guards.watch(step.number + 1, update.loss, update.norm):
            self.scaler.step(self.optimizer)
            self.schedule.step()
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return update

    def _backward(self, step: Step) -> Tensor:
        """Add up the gradients of this rank's packs, and return its share of the loss."""
        total = torch.zeros((), device=self.model.device)
        for batch in step.batches:
            loss = self.model.head.loss(self.model.hidden(batch), batch, step.denominator).loss
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total


class Clock:
    """The steps of the data, with the seconds that each takes and that were spent waiting for it."""

    def __init__(self, loader: Loader) -> None:
        self._steps: Any = iter(loader)
        self._begun = time.perf_counter()
        self.wait = 0.0

    def next(self) -> Step:
        """The next step."""
        begun = time.perf_counter()
        step: Step = next(self._steps)
        self.wait = time.perf_counter() - begun
        return step

    def close(self) -> None:
        """No more steps: the thread that reads ahead ends."""
        self._steps.close()

    def lap(self) -> float:
        """Seconds since the last lap."""
        begun, self._begun = self._begun, time.perf_counter()
        return self._begun - begun


def record_of(step: Step, update: Update, clock: Clock, device: torch.device) -> dict[str, Any]:
    """What metrics.jsonl says of a step."""
    seconds = clock.lap()
    return {
        "step": step.number + 1,
        "epoch": step.epoch,
        "loss": update.loss,
        "learning_rate": update.learning_rate,
        "grad_norm": update.norm,
        "tokens": step.tokens,
        "trained": step.trained,
        "seconds": seconds,
        "wait": clock.wait,
        "tokens_per_second": step.tokens / seconds,
        "trained_per_second": step.trained / seconds,
        "memory": _memory(device),
    }


def _memory(device: torch.device) -> int:
    """The most bytes in use so far: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
