"""Kernels of premask: the fused masked loss."""
