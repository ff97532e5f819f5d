"""What holds for every test."""

import os

# Triton decides when it is first imported (by torch.compile, peft or bitsandbytes too) whether kernels run in its
# interpreter, which needs no GPU. `make test-gpu` sets 0.
os.environ.setdefault("TRITON_INTERPRET", "1")
