# SPDX-License-Identifier: Apache-2.0
"""Networks that judge, in plain torch; parameters carry the names of the authors' checkpoints."""
