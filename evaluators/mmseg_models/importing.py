# SPDX-License-Identifier: Apache-2.0
"""Imports mmsegmentation, quietly and from either family of its distributions, or says in one line what is missing."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import sys
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

from sis.errors import SisError

OPERATORS = "mmcv._ext"
NEEDED = ("mmengine", "mmcv", "mmseg.models", "mmseg.datasets.transforms")


class AbsentOperators(ModuleType):
    """Stands for mmcv's compiled operators where there are none: any of them can be named, none can be called."""

    def __init__(self) -> None:
        super().__init__(OPERATORS)
        self.__spec__ = ModuleSpec(OPERATORS, None)

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith("__"):
            raise AttributeError(name)

        def absent(*_: object) -> NoReturn:
            raise NotImplementedError(f"the compiled operator {name} of mmcv is not installed")

        return absent


def import_mmseg() -> None:
    """Import mmsegmentation's models and transforms, so that they are registered.

    Raises SisError where one of the three packages is absent, does not fit the others or does not load.
    """
    if _is_lite():
        # mmsegmentation 1.2 imports all of mmcv.ops, which asks for these although no segmenter here calls one.
        sys.modules.setdefault(OPERATORS, AbsentOperators())
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # of torch.jit and of optional parts, which it also prints about
            for name in NEEDED:
                importlib.import_module(name)
    except (ImportError, AssertionError) as error:  # an assertion is how mmseg refuses a version of mmcv
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise SisError(
            f"mmsegmentation cannot be imported: {reason}",
            fix="pip install 'sis-bench[seg]' (onedl-mmengine, onedl-mmcv, onedl-mmsegmentation)",
        ) from error


def _is_lite() -> bool:
    try:
        importlib.metadata.distribution("mmcv-lite")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
