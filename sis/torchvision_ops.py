# SPDX-License-Identifier: Apache-2.0
"""Makes a CUDA build of torchvision importable beside a CPU build of torch.

The only Linux x86-64 wheel of torchvision on PyPI links against CUDA libraries. Beside a CPU torch its compiled
library cannot be loaded, and the import then fails while registering shape functions for operators that were never
declared. Declaring the two operators first is enough for everything except the operators themselves.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType


class _DeclareOps:
    """A finder that finds nothing; it prepares torch just before torchvision is imported, then retires."""

    library: object = None  # keeps the declared operators alive for the life of the process

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torchvision":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        places = spec.submodule_search_locations if spec else None
        compiled = Path(next(iter(places)), "_C.so") if places else None
        if compiled is not None and compiled.exists():
            import torch

            try:
                torch.ops.load_library(str(compiled))
            except OSError:
                cls.library = library = torch.library.Library("torchvision", "FRAGMENT")
                for operator in ("nms", "qnms"):
                    library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        sys.meta_path.remove(cls)
        return None


def install() -> None:
    """Put the finder in front of Python's own; costs nothing until somebody imports torchvision."""
    if "torchvision" not in sys.modules and _DeclareOps not in sys.meta_path:
        sys.meta_path.insert(0, _DeclareOps)
