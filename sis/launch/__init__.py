# SPDX-License-Identifier: Apache-2.0
"""Runs training and sampling elsewhere: submit or attach, follow, requeue, report."""
