# SPDX-License-Identifier: Apache-2.0
"""Dataset layouts: one file each, named by a dataset card's `layout`, holding `ids(card, split)` and `load(...)`."""
