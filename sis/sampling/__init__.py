# SPDX-License-Identifier: Apache-2.0
"""Stage 4, sample: label maps become image sets, in shards that survive interruption."""
