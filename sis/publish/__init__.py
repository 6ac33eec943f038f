# SPDX-License-Identifier: Apache-2.0
"""From scores to what people read: ranks, tables, galleries and the leaderboard page."""
