# SPDX-License-Identifier: Apache-2.0
"""One segmentation network a file: `train`, `load`, and the `predict` of what `load` returns."""
