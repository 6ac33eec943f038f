# SPDX-License-Identifier: Apache-2.0
"""Cards of what judges: trained and published segmenters, feature extractors, and the settings of single metrics."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from sis.config.base import Name, StrictModel

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
#: Which classes the mIoU averages: with labels or predictions, with labels, or all.
ClassRule = Literal["union", "gt", "all"]


class SegmenterCard(StrictModel):
    """A segmentation network that is trained here, and how."""

    name: Name = Field(description="file stem in evaluators/segmenters")
    display: Name = Field(description="name in metrics that use its features: fd-<display>")
    steps: Positive = Field(description="training steps")
    batch_size: Positive = Field(description="images per training step")
    learning_rate: Annotated[float, Field(gt=0)] = Field(description="peak learning rate (AdamW, one cycle)")
    seed: Annotated[int, Field(ge=0)] = Field(description="seed of initial weights, order and augmentation")
    width: Annotated[int, Field(ge=4, multiple_of=4)] = Field(description="channels at full resolution")
    jitter: Share = Field(default=0.1, description="largest relative change of brightness and contrast in training")
    images: Positive | None = Field(
        default=None,
        description="training pairs, evenly spaced over the sorted ids; all lie in memory; null = every one",
    )


class FeedCard(StrictModel):
    """How an image comes to a published segmenter, before the network's own preprocessing."""

    size: Annotated[list[Positive], Field(min_length=2, max_length=2)] | Literal["image", "label"] = Field(
        default="image", description="[height, width]; image: as it is; label: the size of the label map"
    )
    kernel: Literal["nearest", "bilinear", "bicubic", "lanczos"] = Field(
        default="bicubic", description="Pillow's filter, antialiased where it shrinks"
    )


class SegmenterPreset(StrictModel):
    """A published segmenter and the policy that feeds it (config/segmenters/<name>.yaml)."""

    name: Name = Field(description="name of the preset, equal to the file's stem; metrics are called miou-<name>")
    title: Annotated[str, Field(min_length=1)] = Field(description="name in tables")
    network: Name = Field(description="file stem in evaluators/segmenters")
    options: dict[str, JsonValue] = Field(default={}, description="options of that network")
    weights: list[Name] = Field(description="names in config/weights.yaml, in the order that the network wants them")
    feed: FeedCard = Field(default=FeedCard(), description="how images are resized before they are shown")
    compare: Literal["prepared", "full"] = Field(
        default="prepared",
        description="label maps that answers are compared with: as prepared for methods, or the protocol's `labels`, "
        "where images are judged one by one",
    )
    ids: list[Annotated[int, Field(ge=0, le=255)]] | None = Field(
        default=None, description="our label id of each of its classes; null: the evaluated ids of the table, in order"
    )
    class_rule: ClassRule = Field(default="union", description="class rule of its authors' mIoU")
    source: Annotated[str, Field(min_length=1)] = Field(description="who scores so, and how that is known")


class FeaturesCard(StrictModel):
    """The network whose features the distribution metrics compare."""

    name: Name = Field(default="inception", description="file stem in evaluators/features")
    options: dict[str, JsonValue] = Field(default={}, description="options of that network")
    weights: list[Name] = Field(default=["inception-fid"], description="names in config/weights.yaml")


class LpipsCard(StrictModel):
    """Settings of the LPIPS diversity."""

    net: Literal["alex", "vgg", "squeeze"] = Field(default="alex", description="backbone of the lpips package, v0.1")


class MsSsimCard(StrictModel):
    """Settings of the MS-SSIM diversity; the usual 5 scales and window 11 need over 160 pixels a side."""

    scales: Annotated[int, Field(ge=1, le=5)] = Field(default=5, description="number of scales")
    window: Annotated[int, Field(ge=3)] = Field(default=11, description="side of the Gaussian window, odd, in pixels")

    @model_validator(mode="after")
    def _odd(self) -> MsSsimCard:
        if self.window % 2 == 0:
            raise ValueError(f"the window must be odd, found {self.window}")
        return self


class AestheticCard(FeaturesCard):
    """The network that rates how a picture looks."""

    name: Name = Field(default="nima", description="file stem in evaluators/features")
    weights: list[Name] = Field(default=["nima"], description="names in config/weights.yaml")


class IidmCard(StrictModel):
    """Settings of IIDM's scores."""

    style: Name = Field(default="hue180", description="colour histogram whose correlation is the style similarity")
    aesthetic: AestheticCard = Field(default=AestheticCard(), description="network that rates how a picture looks")
