# SPDX-License-Identifier: Apache-2.0
"""Stage 3, prior: statistics of the training set that sampling starts from."""
