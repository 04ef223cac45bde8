"""Each machine instruction that kernels call, beside its meaning in NumPy."""
