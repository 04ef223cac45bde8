"""Looks for what is missing or known to fail on this machine, and names the fix for each."""

from __future__ import annotations

from lutcc.doctor.checks import Check, Report, run_checks

__all__ = ["Check", "Report", "run_checks"]
