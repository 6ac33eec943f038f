# SPDX-License-Identifier: Apache-2.0
"""Typed configuration: the single source of schema, defaults and documentation."""
