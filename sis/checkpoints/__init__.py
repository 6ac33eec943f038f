# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of others: one file for each upstream format that brings its weights in and ours back out."""
