# SPDX-License-Identifier: Apache-2.0
"""sis-bench: a benchmark for semantic image synthesis (this package makes the images)."""

from sis import torchvision_ops

__version__ = "0.1.0"

torchvision_ops.install()
