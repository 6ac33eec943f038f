# SPDX-License-Identifier: Apache-2.0
"""Datasets, label spaces and the typed artefacts that pass between the stages."""
