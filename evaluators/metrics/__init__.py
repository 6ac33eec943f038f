# SPDX-License-Identifier: Apache-2.0
"""One metric a file; the file's stem is the name that protocol cards list."""
