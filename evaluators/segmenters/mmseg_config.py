# SPDX-License-Identifier: Apache-2.0
"""Any segmenter that mmsegmentation can build from a config file, with its checkpoint: an extra judge.

It is another judge than the papers' even where the names are alike. A config file is Python and is run when it is read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from evaluators.network import Source, fill_from
from sis.config.base import StrictModel
from sis.config.strict_yaml import validate
from sis.errors import SisError, did_you_mean

TITLE = "A segmenter of mmsegmentation"
VERSION = 1

Step = Callable[[dict[str, Any]], dict[str, Any]]


class Options(StrictModel):
    """What a card may set."""

    config: str = Field(min_length=1, description="path of a config file (.py), or the name of one that is shipped")
    resize: Literal["config", "none"] = Field(
        "config", description="what pictures go through: the config's test pipeline, or nothing at all"
    )
    digest: str | None = Field(
        None, pattern="^[0-9a-f]{8,64}$", description="of the config, or its first digits; a path must come with it"
    )
    extra: list[str] = Field([], description="endings of names in the checkpoint that take no part in judging")


class MmsegSegmenter:
    """Feeds pictures one by one as mmsegmentation does: its test pipeline without loading, then its preprocessor."""

    def __init__(self, network: Any, steps: list[Step], classes: int, device: str = "cpu") -> None:
        """steps: from `{img, img_shape, ori_shape}` to `{inputs, data_samples}`."""
        self.network, self.classes, self._steps = network, classes, steps
        self._devices = [] if device == "cpu" else [device]

    def predict(self, images: NDArray[np.uint8], size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Class indices `(b, *size)`; size None = the pictures'.

        mmsegmentation resizes logits to the size that the network was fed, then to `size`, where it decides.
        """
        found = np.empty((len(images), *(size or images.shape[1:3])), np.uint8)
        with _scope(), torch.inference_mode(), torch.random.fork_rng(self._devices):
            for image, classes in zip(images, found, strict=True):
                torch.manual_seed(0)  # some networks draw numbers when they judge (SegNeXt's head)
                answer: Tensor = self.network.test_step(self._packed(image, classes.shape))[0].pred_sem_seg.data
                classes[:] = answer[0].to(torch.uint8).cpu().numpy()
        return found

    def _packed(self, image: NDArray[np.uint8], size: tuple[int, ...]) -> dict[str, Any]:
        """A batch of one picture `(h, w, 3)`, whose answer will be brought to `size`."""
        shape = image.shape[:2]
        item: dict[str, Any] = {"img": np.ascontiguousarray(image[..., ::-1]), "img_shape": shape, "ori_shape": shape}
        for step in self._steps:  # they expect blue, green, red, as OpenCV reads files
            item = step(item)
        item["data_samples"].set_metainfo({"ori_shape": size})
        return {"inputs": [item["inputs"]], "data_samples": [item["data_samples"]]}


def load(options: Mapping[str, Any], source: Source) -> MmsegSegmenter:
    """Read the config, build its model and fill it.

    Raises SisError for unknown options, a config that is not there, fails or has no segmentation model, weights that do
    not fit, and where mmsegmentation is not installed.
    """
    chosen = validate(Options, dict(options), "options of segmenter mmseg_config")
    importlib.import_module("evaluators.mmseg_models")  # imports mmsegmentation, and registers our models in it
    path = find_config(chosen.config)
    with _scope(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of losses and of other things that matter in training
        try:
            config = _read(path)
            _check_digest(config, chosen, path)
            network = _built(config)
            steps = _steps(config, chosen.resize)
        except SisError:
            raise
        except Exception as error:  # whatever foreign Python may raise
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise SisError(f"mmsegmentation cannot use this config: {reason}", where=path) from error
    classes = getattr(network, "num_classes", None)
    if not isinstance(classes, int) or not 0 < classes <= 256:
        raise SisError(f"not a model that names 1 to 256 classes: {type(network).__name__}", where=path)
    fill_from(network, source, chosen.extra)
    return MmsegSegmenter(network, steps, classes, source.device)


def find_config(name: str) -> Path:
    """The file of a path that ends in .py, or of the name of a config that mmsegmentation ships.

    Raises SisError when there is none.
    """
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise SisError("no such config file", where=name)
        return Path(name)
    found = importlib.util.find_spec("mmseg")
    package = Path(found.origin).parent if found and found.origin else Path()
    shipped = {p.stem: p for p in (package / ".mim" / "configs").glob("[!_]*/*.py")}
    if name not in shipped:
        fix = did_you_mean(name, shipped) if shipped else "give the path of a file that ends in .py"
        raise SisError(f"mmsegmentation ships no config {name!r}", fix=fix)
    return shipped[name]


def _read(path: Path) -> Any:
    from mmengine import Config

    config = Config.fromfile(path)
    if "model" not in config:
        raise SisError("this config has no `model`", where=path)
    return config


def digest_of(config: Any) -> str:
    """The sha256 of what a config says of judging: its `model` and `test_pipeline`, base files included."""
    said = {name: value for name, value in config.to_dict().items() if name in ("model", "test_pipeline")}
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()


def _check_digest(config: Any, chosen: Options, path: Path) -> None:
    """A number must tell by which config it came: a shipped one has a name, any other its digest."""
    digest = digest_of(config)
    if chosen.digest is None and chosen.config.endswith(".py"):
        raise SisError("a config of your own needs its digest", where=path, fix=f"add to the options: digest: {digest}")
    if not digest.startswith(chosen.digest or ""):
        what = f"the digest of this config begins with {digest[:8]}, the options say {chosen.digest}"
        raise SisError(what, where=path, fix="has the file been edited since?")


def _built(config: Any) -> Any:
    """The model, with weights at random: nothing is fetched, and batch norm is not synchronised."""
    from mmengine.model import revert_sync_batchnorm
    from mmseg.registry import MODELS

    for name in ("pretrained", "train_cfg"):
        config.model.pop(name, None)
    return revert_sync_batchnorm(MODELS.build(config.model))


def _steps(config: Any, resize: str) -> list[Step]:
    """The test pipeline without what loads pictures and label maps; its last step packs."""
    from mmseg.registry import TRANSFORMS

    if resize == "config" and "test_pipeline" not in config:
        raise SisError("this config has no `test_pipeline`", where=config.filename, fix="set the option resize to none")
    whole = config.test_pipeline if resize == "config" else []
    kept = [step for step in whole if not _name(step).startswith("Load") and _name(step) != "PackSegInputs"]
    return [TRANSFORMS.build(step) for step in [*kept, {"type": "PackSegInputs"}]]


def _name(step: Any) -> str:
    kind = step["type"]
    return kind if isinstance(kind, str) else kind.__name__


def _scope() -> Any:
    """Within it the parts of mmsegmentation find each other by name."""
    from mmengine.registry import DefaultScope

    return DefaultScope.overwrite_default_scope("mmseg")
