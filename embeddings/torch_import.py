"""Importing torch and its companions. torchvision's wheels on package registries are built for CUDA.

Beside a CPU-only torch their compiled operators do not load, and torchvision stops at import because some of them
(`nms`, `qnms`) are not even declared. Declaring them is enough: nothing here calls one.
"""

from __future__ import annotations

import re
import sys
from typing import Any

from lake.errors import MissingExtra

# A declaration lasts as long as its library object.
_declared: list[object] = []


def torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtra("torch", "embed") from error
    return torch


def torchvision() -> Any:
    """torchvision, importable beside a CPU-only torch; also what timm and open_clip import."""
    t = torch()
    while True:
        try:
            import torchvision

            return torchvision
        except ImportError as error:
            raise MissingExtra("torchvision", "embed") from error
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            library = t.library.Library("torchvision", "FRAGMENT")
            library.define(f"{missing[1]}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _declared.append(library)
            for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
                del sys.modules[name]


def timm() -> Any:
    torchvision()
    try:
        import timm
    except ImportError as error:
        raise MissingExtra("timm", "embed") from error
    return timm


def open_clip() -> Any:
    torchvision()
    try:
        import open_clip
    except ImportError as error:
        raise MissingExtra("open-clip-torch", "embed") from error
    return open_clip
