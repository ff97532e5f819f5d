"""Kernels of premask: the fused masked loss, whose cost grows with the supervised tokens alone."""

from premask_kernels.loss import MaskedLoss, masked_linear_cross_entropy
from premask_kernels.rows import SupervisedRows, supervised_rows

__all__ = ["MaskedLoss", "SupervisedRows", "masked_linear_cross_entropy", "supervised_rows"]
