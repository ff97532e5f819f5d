"""What holds for every test."""

import os

from hypothesis import HealthCheck, settings

# Triton decides when it is first imported (by torch.compile, peft or bitsandbytes too) whether kernels run in its
# interpreter, which needs no GPU. `make test-gpu` sets 0.
os.environ.setdefault("TRITON_INTERPRET", "1")

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
