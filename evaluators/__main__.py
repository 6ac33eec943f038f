# SPDX-License-Identifier: Apache-2.0
"""Entry point of `python -m evaluators`."""

from __future__ import annotations

import sys

from evaluators.cli import main

if __name__ == "__main__":
    sys.exit(main())
