"""From torch models to the IR, and mixed models through TVM Relax (``lutcc.frontend.relax``).

Imports are lazy: ``import lutcc.frontend`` loads neither torch nor TVM.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_ATTRIBUTES = {
    "Imported": ("lutcc.frontend.torch_import", "Imported"),
    "Port": ("lutcc.frontend.graph", "Port"),
    "Region": ("lutcc.frontend.partition", "Region"),
    "exported_again": ("lutcc.frontend.exported_layers", "exported_again"),
    "import_torch": ("lutcc.frontend.torch_import", "import_torch"),
    "layers_of": ("lutcc.frontend.exported_layers", "layers_of"),
}

__all__ = [
    "Imported",
    "Port",
    "Region",
    "exported_again",
    "import_torch",
    "layers_of",
    "relax",
]

if TYPE_CHECKING:
    from lutcc.frontend import relax
    from lutcc.frontend.exported_layers import exported_again, layers_of
    from lutcc.frontend.graph import Port
    from lutcc.frontend.partition import Region
    from lutcc.frontend.torch_import import Imported, import_torch


def __getattr__(name: str) -> Any:
    if name == "relax":
        return importlib.import_module("lutcc.frontend.relax")
    if name in _ATTRIBUTES:
        module, attribute = _ATTRIBUTES[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'lutcc.frontend' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
