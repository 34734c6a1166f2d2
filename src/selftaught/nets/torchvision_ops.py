"""Make torchvision importable beside a CPU build of torch."""

from __future__ import annotations

import sys

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

# A torch.library.Library removes its operators when it is garbage collected, so it must outlive the import.
_kept: list[torch.library.Library] = []


def make_torchvision_importable() -> bool:
    """Import torchvision, declaring the two operators it insists on when its compiled part cannot be loaded.

    torchvision wheels of the package index are built against the CUDA build of torch; beside a CPU build their
    compiled operators do not load, and `torchvision/_meta_registrations.py` then fails with "operator
    torchvision::nms does not exist" although nothing but those operators is missing. Declaring their schemas lets
    the import succeed: transforms and models work, calling `torchvision.ops.nms` still raises.

    Returns: True when the schemas had to be declared, False when torchvision imports (or was imported) by itself.
    Errors: ImportError when torchvision is not installed; any other error of the import is passed on unchanged.
    """
    if "torchvision" in sys.modules:
        return bool(_kept)
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error) or "does not exist" not in str(error):
            raise
    else:
        return bool(_kept)
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
    if not _kept:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in _SCHEMAS:
            library.define(schema)
        _kept.append(library)
    import torchvision  # noqa: F401

    return True
