# SPDX-License-Identifier: Apache-2.0
"""Diffusion mathematics: schedules, samplers as pure functions, guidance, losses, keyed noise."""
