"""What tests of tuning share with those of the commands."""

from __future__ import annotations

from tests.cli.conftest import lutcc_command as lutcc_command
