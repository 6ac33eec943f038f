# SPDX-License-Identifier: Apache-2.0
"""Feature extractors of distribution metrics; one a file, found by its stem."""
