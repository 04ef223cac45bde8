"""Triton schedules: kernels for training on GPUs, forward and backward, one file per operation.

Each file holds kernels (``@triton.jit``), a config chosen by a visible rule, and launchers that
take torch tensors of any strides. Gradients are tied together in :mod:`lutcc.ops`. Nothing here
needs TVM, and nothing else in lutcc needs Triton.
"""
