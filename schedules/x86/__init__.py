"""x86 schedules: one file per operation, AVX2 to AVX-512 with VBMI and VNNI."""
