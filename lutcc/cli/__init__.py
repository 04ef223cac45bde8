"""The ``lutcc`` command: one file per sub-command; data on stdout, progress on stderr."""
