"""When a run is stopped because it has gone wrong: gradients that are no numbers, a loss that grows."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from premask.errors import DataError

MOST_SKIPPED = 10
"""Steps in a row without finite gradients. In fp16 a few are usual: the loss scale is being found."""

SMOOTHING = 0.9
"""Share of the past in the smoothed loss."""


@dataclass(slots=True)
class Guards:
    """Watches the losses of a run; goes into checkpoints as `state`."""

    divergence: float | None
    """Stop when the smoothed loss is so many times its lowest value."""

    skipped: int = 0
    smoothed: float | None = None
    lowest: float | None = None

    def state(self) -> dict[str, Any]:
        """All of it, in JSON types."""
        return asdict(self)

    def watch(self, step: int, loss: float, norm: float) -> bool:
        """Whether the weights may be updated with these gradients. DataError where the run is to be stopped."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.skipped += 1
            if self.skipped == MOST_SKIPPED:
                raise DataError(
                    f"step {step}: expected finite gradients, found loss {loss}, norm {norm}, for the {MOST_SKIPPED}th "
                    "step in a row; take a lower learning_rate, or precision=bf16 or fp32, and go on from the last "
                    "checkpoint with --resume"
                )
            return False
        self.skipped = 0
        self.smoothed = loss if self.smoothed is None else SMOOTHING * self.smoothed + (1 - SMOOTHING) * loss
        self.lowest = self.smoothed if self.lowest is None else min(self.lowest, self.smoothed)
        if self.divergence is not None and self.smoothed > self.divergence * self.lowest:
            raise DataError(
                f"step {step}: the smoothed loss {self.smoothed:.3f} is over {self.divergence:g} times its lowest, "
                f"{self.lowest:.3f}; take a lower learning_rate and begin anew, or --set divergence=null to go on"
            )
        return True
