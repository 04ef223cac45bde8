"""What the fixtures of the command-line tests return."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a command printed and returned."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(frozen=True)
class Files:
    """Inputs and outputs of ``lutcc fit`` and ``lutcc compile``."""

    folder: Path
    rows: Path
    weight: Path
    module: Path
    artifact: Path
