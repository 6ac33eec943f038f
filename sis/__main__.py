# SPDX-License-Identifier: Apache-2.0
"""`python -m sis` is the command line `sis`."""

import sys

from sis.cli import main

sys.exit(main())
