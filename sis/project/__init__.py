# SPDX-License-Identifier: Apache-2.0
"""Commands about the project itself: what there is, new plug-ins, contract checks."""
