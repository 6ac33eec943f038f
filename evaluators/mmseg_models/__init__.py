# SPDX-License-Identifier: Apache-2.0
"""Protocol segmenters as models of mmsegmentation; importing this package registers them (needs the extra `seg`).

Each file has the registered modules, `model(...)` = the config of the whole model, and `weights(...)` = the authors'
checkpoint under mmsegmentation's names.
"""

from __future__ import annotations

from evaluators.mmseg_models.importing import import_mmseg

import_mmseg()

from evaluators.mmseg_models import csail_upernet, deeplabv2, drn, face_unet  # noqa: E402

__all__ = ["csail_upernet", "deeplabv2", "drn", "face_unet"]
