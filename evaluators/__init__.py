# SPDX-License-Identifier: Apache-2.0
"""evaluators: judges images; knows nothing of how they were made."""

from sis import torchvision_ops

torchvision_ops.install()
