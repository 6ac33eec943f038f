# SPDX-License-Identifier: Apache-2.0
"""Stage 2, train: the loop, averaged weights, exact resume."""
