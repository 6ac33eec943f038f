# SPDX-License-Identifier: Apache-2.0
"""The linear heads of LPIPS, which come with the lpips package: held against their sha256 before they judge.

They are small pickles of the oldest kind, without any checksum: of 600 single flipped bits 488 loaded in silence and
changed the distance. The protocol id names them by their version alone.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from sis.data.manifest import file_sha256
from sis.errors import SisError

#: Of the files weights/v0.1/<net>.pth of lpips 0.1.4.
SHA256 = {
    "alex": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "squeeze": "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
    "vgg": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
}


def check_heads(net: str) -> None:
    """Raise SisError unless the installed heads v0.1 of `net` (alex, squeeze, vgg) are the published ones."""
    path = heads_folder() / f"{net}.pth"
    fix = "pip install --force-reinstall --no-deps lpips==0.1.4"
    try:
        found = file_sha256(path)
    except OSError as error:
        raise SisError("the heads of LPIPS cannot be read", where=path, fix=fix) from error
    if found != SHA256[net]:
        raise SisError(f"sha256 begins with {found[:16]}, expected {SHA256[net][:16]}", where=path, fix=fix)


def heads_folder() -> Path:
    """Where the installed package keeps its heads; the package itself, which is slow, is not imported."""
    spec = importlib.util.find_spec("lpips")
    if spec is None or spec.origin is None:
        raise SisError("LPIPS needs the package lpips", fix="pip install lpips==0.1.4")
    return Path(spec.origin).parent / "weights" / "v0.1"
