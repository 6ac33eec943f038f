# SPDX-License-Identifier: Apache-2.0
"""torchvision and what stands on it can be imported beside a CPU torch, once sis has been imported."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> str:
    """Run code in a fresh process and return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("first", ["sis", "evaluators"])
def test_packages_that_need_torchvision_import_after_ours(first: str) -> None:
    code = f"import {first}\nimport torchvision, lpips\nimport pytorch_fid.inception\nprint(torchvision.__version__)"
    assert run(code)


@pytest.mark.slow
def test_torchvision_networks_run() -> None:
    code = (
        "import sis, torch, torchvision\n"
        "net = torchvision.models.squeezenet1_1(weights=None).eval()\n"
        "print(tuple(net(torch.zeros(1, 3, 64, 64)).shape))"
    )
    assert run(code) == "(1, 1000)"


def test_importing_sis_loads_neither_torch_nor_torchvision() -> None:
    assert run("import sys, sis; print({'torch', 'torchvision'} & set(sys.modules))") == "set()"


def test_the_finder_is_installed_once_and_finds_nothing_else() -> None:
    code = (
        "import sys, sis\n"
        "from sis import torchvision_ops\n"
        "before = len(sys.meta_path)\n"
        "torchvision_ops.install(); torchvision_ops.install()\n"
        "print(len(sys.meta_path) - before, sys.meta_path[0].find_spec('json'))"
    )
    assert run(code) == "0 None"
