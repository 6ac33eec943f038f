# SPDX-License-Identifier: Apache-2.0
"""Methods: one file each, found by its name; `contract` says what a file must hold, `discovery` finds it."""
