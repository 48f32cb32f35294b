"""Triton kernels and their launchers, one file an op; imported when a first tensor needs them."""
