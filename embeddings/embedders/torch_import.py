"""Imports torch, torchvision, timm and open_clip, also where torchvision's operators cannot be loaded.

torchvision's wheels on package registries are built for CUDA. With a CPU-only torch their compiled operators do not
load, and torchvision fails at import because some of them (`nms`, `qnms`) are not declared. Declaring them is enough:
nothing here calls them.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from lake.extras import require

# A declaration lasts as long as its library object.
_declared: list[object] = []


def torch() -> Any:
    return require("torch", "torch", "embed")


def torchvision() -> Any:
    """torchvision, importable with a CPU-only torch, too; timm and open_clip import it."""
    torch()
    if "torchvision" not in sys.modules:
        _declare_operators_that_do_not_load()
    return require("torchvision", "torchvision", "embed")


def _declare_operators_that_do_not_load() -> None:
    spec = importlib.util.find_spec("torchvision")
    compiled = Path(spec.origin).with_name("_C.so") if spec is not None and spec.origin else None
    if compiled is None or not compiled.exists():
        return
    try:
        torch().ops.load_library(compiled)
    except OSError:
        library = torch().library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)


def timm() -> Any:
    torchvision()
    return require("timm", "timm", "embed")


def open_clip() -> Any:
    torchvision()
    return require("open_clip", "open-clip-torch", "embed")
