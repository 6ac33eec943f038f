# SPDX-License-Identifier: Apache-2.0
"""Two small images that a diffusion starts from, and the noise of a run over them."""

from __future__ import annotations

from sis.diffusion.noise import Noise

NOISE = Noise(0, (("a", 0), ("b", 0)))
START = NOISE.uniform("x0", 0, (3, 4, 4)) * 1.8 - 0.9
