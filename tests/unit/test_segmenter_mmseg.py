# SPDX-License-Identifier: Apache-2.0
"""mmsegmentation: its configs judge as its own tools do, and our registered models are our plain networks.

Refusals are one line.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from evaluators.nets.csail_resnet import CsailResnet
from evaluators.nets.deeplabv2 import MSC, DeepLabV2
from evaluators.nets.drn import DrnSegmenter
from evaluators.nets.face_unet import FaceUNet
from evaluators.nets.upernet import UPerNet
from evaluators.network import Source, fill_seeded
from evaluators.segmenters.mmseg_config import MmsegSegmenter, find_config, load
from sis.data.weight_files import write_weights
from sis.errors import SisError

CASES = Path(__file__).parents[1] / "golden" / "cases" / "eval"

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mmseg") is None, reason="the extra `seg` is not installed")

#: A whole config, with what would fetch files and what needs several processes still in it.
CONFIG = """
norm = dict(type="SyncBN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    pretrained="open-mmlab://resnet18_v1c",
    data_preprocessor=dict(
        type="SegDataPreProcessor", mean=[120.0, 110.0, 100.0], std=[58.0, 57.0, 56.0],
        bgr_to_rgb=True, pad_val=0, seg_pad_val=255, test_cfg=dict(size_divisor=32)),
    backbone=dict(type="ResNet", depth=18, base_channels=8, stem_channels=8, norm_cfg=norm),
    decode_head=dict(
        type="FCNHead", in_channels=64, in_index=3, channels=8, num_convs=1, num_classes=5, norm_cfg=norm),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"))
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(96, 60), keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs")]
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("mmseg") / "tiny.py"
    path.write_text(CONFIG)
    return str(path)


@pytest.fixture(scope="module")
def options(config: str) -> dict[str, Any]:
    return with_digest(config)


@pytest.fixture(scope="module")
def judge(options: dict[str, Any]) -> MmsegSegmenter:
    return load(options, Source())


def with_digest(config: str) -> dict[str, Any]:
    """The options that the refusal of a config without digest asks for."""
    with pytest.raises(SisError, match=r"needs its digest .* - add to the options: digest: [0-9a-f]{64}$") as caught:
        load({"config": config}, Source())
    return {"config": config, "digest": str(caught.value)[-64:]}


@pytest.fixture(scope="module")
def images() -> NDArray[np.uint8]:
    coarse = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :37, :50]


def test_answers_are_those_of_mmsegmentation_s_own_inference(
    judge: MmsegSegmenter, config: str, images: NDArray[np.uint8]
) -> None:
    from mmengine import Config
    from mmengine.registry import DefaultScope
    from mmseg.apis import inference_model

    judge.network.cfg = Config.fromfile(config)
    with DefaultScope.overwrite_default_scope("mmseg"):
        theirs: Any = [inference_model(judge.network, np.ascontiguousarray(i[..., ::-1])) for i in images]
    expected = np.stack([result.pred_sem_seg.data[0].numpy() for result in theirs])
    assert expected.shape == (3, 37, 50) and len(np.unique(expected)) > 1
    np.testing.assert_array_equal(judge.predict(images), expected)


def test_answers_come_at_the_size_asked_for_whatever_the_batch(
    judge: MmsegSegmenter, images: NDArray[np.uint8]
) -> None:
    together = judge.predict(images, (64, 33))
    assert together.shape == (3, 64, 33) and together.dtype == np.uint8 and judge.classes == 5
    for image, answer in zip(images, together, strict=True):
        np.testing.assert_array_equal(judge.predict(image[None], (64, 33))[0], answer)


def test_a_network_that_draws_numbers_answers_the_same_every_time(
    judge: MmsegSegmenter, images: NDArray[np.uint8]
) -> None:
    handle = judge.network.backbone.register_forward_hook(lambda _, x, maps: [m + 9 * torch.rand_like(m) for m in maps])
    state = torch.get_rng_state()
    first, again = judge.predict(images[:2]), judge.predict(images[1:2])
    handle.remove()
    np.testing.assert_array_equal(first[1:], again)
    assert not np.array_equal(judge.predict(images[:2]), first), "the numbers mattered"
    assert torch.equal(torch.get_rng_state(), state), "others' numbers are left alone"


def test_pictures_are_resized_as_the_config_says_or_not_at_all(
    judge: MmsegSegmenter, options: dict[str, Any], images: NDArray[np.uint8]
) -> None:
    plain = load({**options, "resize": "none"}, Source())
    shapes = {}
    for name, one in (("config", judge), ("none", plain)):
        seen: list[torch.Size] = []
        handle = one.network.backbone.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0].shape[2:]))
        one.predict(images[:1])
        handle.remove()
        shapes[name] = seen
    # 37x50 fits 96x60 at 60/37; then both are padded to multiples of 32.
    assert shapes == {"config": [torch.Size((64, 96))], "none": [torch.Size((64, 64))]}


def test_the_channels_arrive_in_the_order_of_the_mean(judge: MmsegSegmenter) -> None:
    red = np.zeros((1, 32, 32, 3), np.uint8)
    red[..., 0] = 255
    seen: list[torch.Tensor] = []
    handle = judge.network.backbone.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    judge.predict(red)
    handle.remove()
    torch.testing.assert_close(seen[0][0, :, 5, 5], torch.tensor([135 / 58, -110 / 57, -100 / 56]))


def test_a_file_of_weights_is_read_by_name_and_batch_norm_is_not_synchronised(
    judge: MmsegSegmenter, options: dict[str, Any], images: NDArray[np.uint8], tmp_path: Path
) -> None:
    assert not [m for m in judge.network.modules() if isinstance(m, torch.nn.SyncBatchNorm)]
    weights = judge.network.state_dict()
    weights["decode_head.conv_seg.bias"] = weights["decode_head.conv_seg.bias"] + torch.tensor([0, 0, 0, 1e6, 0])
    write_weights({**weights, "auxiliary_head.conv_seg.bias": torch.zeros(5)}, tmp_path / "a.pth")
    with pytest.raises(SisError, match=r"1 unexpected: auxiliary_head\.conv_seg\.bias"):
        load(options, Source([tmp_path / "a.pth"]))
    dropped = {**options, "extra": ["auxiliary_head.conv_seg.bias"]}
    assert (load(dropped, Source([tmp_path / "a.pth"])).predict(images) == 3).all()


def registered(name: str, weights: dict[str, torch.Tensor], **options: Any) -> torch.nn.Module:
    """The registered model `name` with these weights, which must be all of its weights."""
    from mmengine import ConfigDict
    from mmengine.registry import DefaultScope
    from mmseg.registry import MODELS

    config = ConfigDict(importlib.import_module(f"evaluators.mmseg_models.{name}").model(**options))
    with DefaultScope.overwrite_default_scope("mmseg"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of losses, in training
        model = MODELS.build(config)
    counters = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    model.load_state_dict({**counters, **weights})
    model.eval()
    return model


def stand_in(network: torch.nn.Module) -> Any:
    fill_seeded(network)
    return network.eval()


def golden_input(case: str) -> torch.Tensor:
    with np.load(CASES / case / "data.npz") as data:
        x = torch.from_numpy(data["x"])
    return x if x.ndim == 4 else x[None]


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, as a share of the spread of what is expected."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.std())


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["old", "new"])
def test_registered_deeplabv2_is_ours(interpolation: Any) -> None:
    from evaluators.mmseg_models import deeplabv2

    ours = stand_in(MSC(DeepLabV2([3, 4, 6, 3], 21, [6, 12, 18, 24]), [0.5, 0.75], interpolation))
    weights = deeplabv2.weights(ours.state_dict())
    theirs = registered("deeplabv2", weights, classes=21, depth=50, interpolation=interpolation)
    x = golden_input("deeplabv2_resnet101_msc")
    with torch.inference_mode():
        for picture in (x, x[..., :64, :80]):  # the odd size, and one where the pool's rounding shows
            assert distance(theirs(picture), ours(picture)) < 1e-6


def test_registered_face_unet_is_ours() -> None:
    from evaluators.mmseg_models import face_unet

    ours = stand_in(FaceUNet())
    theirs = registered("face_unet", face_unet.weights(ours.state_dict()))
    x = golden_input("celeba_unet")
    with torch.inference_mode():
        assert distance(theirs(x), ours(x)) < 1e-5, "biases are folded into running means"


@pytest.mark.slow
def test_registered_csail_upernet_is_ours_and_mmsegmentation_s_own_head_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from evaluators.mmseg_models import csail_upernet

    encoder = stand_in(CsailResnet("resnet50"))
    decoder = stand_in(UPerNet((256, 512, 1024, 2048), 150, 512, (1, 2, 3, 6)))
    extra = {"bn1._tmp_running_mean": torch.zeros(64), "bn1._running_iter": torch.zeros(1)}
    weights = csail_upernet.weights(encoder.state_dict() | extra, decoder.state_dict())
    theirs = registered("csail_upernet", weights, depth=50)
    x = golden_input("csail_resnet101_upernet")
    with torch.inference_mode():
        expected = decoder(encoder(x))
        assert distance(theirs(x), expected) < 1e-6
        monkeypatch.delattr(csail_upernet.CsailUPerHead, "psp_forward")
        assert distance(theirs(x), expected) > 1e-3


def test_registered_drn_is_ours() -> None:
    from evaluators.mmseg_models import drn

    ours = stand_in(DrnSegmenter("drn_d_22", 19))
    theirs = registered("drn", drn.weights(ours.state_dict()), arch="drn_d_22")
    x = golden_input("drn_seg_drn_d_105")
    with torch.inference_mode():
        assert distance(theirs(x), ours(x)) < 1e-6


def test_registered_models_normalise_as_ours(images: NDArray[np.uint8]) -> None:
    from mmseg.registry import MODELS

    from evaluators.mmseg_models import deeplabv2, drn, face_unet
    from evaluators.segmenters import deeplabv2 as coco
    from evaluators.segmenters import drn as cityscapes
    from evaluators.segmenters import face_unet as faces

    judges = {
        deeplabv2: coco.DeepLabV2Segmenter(torch.nn.Module(), coco.Options()).prepare,
        face_unet: faces.FaceSegmenter(torch.nn.Module(), faces.Options(size=[37, 50])).prepare,
        drn: lambda x: cityscapes.Drn(torch.nn.Module(), cityscapes.DrnOptions()).normalised(x[0]),
    }
    bgr = torch.from_numpy(np.ascontiguousarray(images[0, ..., ::-1])).permute(2, 0, 1)
    for module, prepare in judges.items():
        preprocessor = MODELS.build(module.model()["data_preprocessor"])
        fed = preprocessor({"inputs": [bgr]})["inputs"]
        torch.testing.assert_close(fed, prepare(images[:1]), rtol=1e-5, atol=1e-5)


def test_configs_that_are_shipped_are_found_by_name() -> None:
    name = "segformer_mit-b0_8xb2-160k_ade20k-512x512"
    assert find_config(name).is_file() and find_config(name).parent.name == "segformer"
    with pytest.raises(SisError, match=f"ships no config '{name}4' - did you mean '{name}'"):
        find_config(name + "4")
    with pytest.raises(SisError, match=r"no such config file \[x\.py\]"):
        find_config("x.py")


def test_an_edited_config_is_refused_and_its_comments_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "base.py").write_text(CONFIG)
    path = tmp_path / "own.py"
    path.write_text("_base_ = 'base.py'")
    options = with_digest(str(path))
    path.write_text("_base_ = 'base.py'  # mine\nlog_level = 'INFO'")
    load({**options, "digest": options["digest"][:8]}, Source())
    (tmp_path / "base.py").write_text(CONFIG.replace("scale=(96, 60)", "scale=(96, 64)"))
    with pytest.raises(SisError, match=r"the digest of this config begins with .{8}, the options say"):
        load(options, Source())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1", "this config has no `model`"),
        ("a = 1 / 0", "cannot use this config: ZeroDivisionError: division by zero"),
        ("model = dict(type='NoSuchModel')", "cannot use this config: KeyError: .*NoSuchModel"),
        ("model = dict(type='FCNHead', in_channels=4, channels=4, num_classes=300)\ntest_pipeline = []", "1 to 256"),
        (CONFIG.split("test_pipeline")[0], "has no `test_pipeline` .* - set the option resize to none"),
    ],
)
def test_a_config_that_cannot_judge_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.py"
    path.write_text(text)
    with pytest.raises(SisError, match=message) as caught:
        load(with_digest(str(path)) if "model" in text else {"config": str(path)}, Source())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_without_mmsegmentation_one_line_names_the_extra_and_its_three_packages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from evaluators.mmseg_models.importing import import_mmseg

    monkeypatch.setitem(sys.modules, "mmseg.models", None)
    with pytest.raises(SisError, match=r"cannot be imported: .* - pip install 'sis-bench\[seg\]'") as caught:
        import_mmseg()
    assert "onedl-mmengine, onedl-mmcv, onedl-mmsegmentation" in str(caught.value)


def test_versions_that_mmsegmentation_does_not_accept_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from evaluators.mmseg_models import importing

    def refuse(name: str) -> None:
        raise AssertionError("MMCV==2.2.0 is used but incompatible.\nPlease install mmcv>=2.0.0rc4.")

    monkeypatch.setattr(importing.importlib, "import_module", refuse)
    with pytest.raises(SisError, match=r"cannot be imported: MMCV==2\.2\.0 is used but incompatible") as caught:
        importing.import_mmseg()
    assert "\n" not in str(caught.value)


def test_compiled_operators_that_are_absent_can_be_named_but_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    from evaluators.mmseg_models import importing

    monkeypatch.setitem(sys.modules, importing.OPERATORS, importing.AbsentOperators())
    operators = importlib.import_module("mmcv._ext")
    with pytest.raises(NotImplementedError, match="operator psamask_forward of mmcv is not installed"):
        operators.psamask_forward(1)
    assert not hasattr(operators, "__wrapped__")
    assert importlib.util.find_spec("mmcv._ext") is not None, "what mmengine asks to know whether mmcv is whole"


def test_they_stand_in_with_mmcv_lite_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from evaluators.mmseg_models import importing

    monkeypatch.setitem(sys.modules, importing.OPERATORS, None)
    monkeypatch.delitem(sys.modules, importing.OPERATORS)
    installed = {"mmcv-lite"}

    def distribution(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return name

    monkeypatch.setattr(importing.importlib.metadata, "distribution", distribution)
    importing.import_mmseg()
    assert isinstance(sys.modules[importing.OPERATORS], importing.AbsentOperators)
    del sys.modules[importing.OPERATORS]
    installed.clear()
    importing.import_mmseg()
    assert importing.OPERATORS not in sys.modules


@pytest.mark.slow
def test_the_import_says_nothing() -> None:
    code = "import sis, evaluators.mmseg_models"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
