"""selftaught: a machine that learns by itself from raw pictures, without labels.

The public functions are imported when first used, so that ``import selftaught`` costs a few milliseconds and no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from selftaught.learn import learn as learn
    from selftaught.loading import load as load
    from selftaught.registry import methods as methods
    from selftaught.train import train as train

_PUBLIC = {
    "learn": "selftaught.learn",
    "load": "selftaught.loading",
    "methods": "selftaught.registry",
    "train": "selftaught.train",
}

__all__ = ["__version__", "learn", "load", "methods", "train"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'selftaught' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps ``selftaught.learn`` and ``selftaught.train`` functions after the modules of the same name are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _PUBLIC and isinstance(value, ModuleType):
            value = getattr(value, name, value)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
