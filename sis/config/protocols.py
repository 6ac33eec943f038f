# SPDX-License-Identifier: Apache-2.0
"""Protocol cards: how images are judged, and the id that names everything a number depends on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from sis.config.base import Name, StrictModel
from sis.data.manifest import stable_hash

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class ReferenceCard(StrictModel):
    """The real images that generated ones are compared with."""

    split: Name = Field(description="split of the dataset whose photographs are the reference")
    count: Positive | None = Field(default=None, description="the first so many by image id; null = the whole split")


class SamplesCard(StrictModel):
    """How many samples of one label map a metric looks at; a run with fewer leaves the metric undefined."""

    quality: Positive = Field(default=1, description="samples per label map for miou, accuracy and fd (the first ones)")
    diversity: Annotated[int, Field(ge=2)] = Field(
        default=2, description="samples per label map for lpips and ms_ssim: all pairs of the first so many"
    )


class SegmenterCard(StrictModel):
    """The segmentation network that judges, and how it is trained."""

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


class BootstrapCard(StrictModel):
    """Resampling of label maps behind every interval."""

    replicates: Positive = Field(description="number of bootstrap replicates")
    seed: Annotated[int, Field(ge=0)] = Field(description="seed of the resampled label maps, shared by every run")


class ProtocolCard(StrictModel):
    """One way to judge image sets of one dataset (config/protocols/<name>.yaml)."""

    name: Name = Field(description="name of the protocol, equal to the file's stem")
    title: Annotated[str, Field(min_length=1)] = Field(description="name in tables")
    dataset: Name = Field(description="dataset whose label maps are drawn")
    split: Name = Field(description="split whose label maps are drawn")
    reference: ReferenceCard = Field(description="real images of the distribution metrics")
    samples: SamplesCard = Field(default=SamplesCard(), description="samples per label map that metrics look at")
    segmenter: SegmenterCard = Field(description="the judging network")
    metrics: Annotated[list[Name], Field(min_length=1)] = Field(description="file stems in evaluators/metrics")
    lpips: LpipsCard = Field(default=LpipsCard(), description="settings of the metric lpips")
    ms_ssim: MsSsimCard = Field(default=MsSsimCard(), description="settings of the metric ms_ssim")
    class_rule: Literal["union", "gt", "all"] = Field(
        default="union",
        description="classes that the mIoU averages: with labels or predictions, with labels, or all",
    )
    bootstrap: BootstrapCard = Field(description="intervals")
    batch_size: Positive = Field(default=32, description="fixed batch of the judging networks; the last is padded")
    version: Positive = Field(description="raise it when the meaning of the protocol changes")


class ReferenceRecord(StrictModel):
    """The real images behind one number."""

    split: str
    pairs_sha256: str
    count: int


class NetworkRecord(StrictModel):
    """The weights behind one number; of a stand-in the rule that makes them."""

    name: str
    sha256: str


class ProtocolRecord(StrictModel):
    """Everything that defines one number, except the images themselves."""

    version: int = Field(description="version of the protocol card")
    dataset: str
    split: str
    pairs_sha256: str = Field(description="hash of the ids and pixels of the judged label maps")
    label_maps: int
    samples_per_map: int
    size: Annotated[list[int], Field(min_length=2, max_length=2)] = Field(description="height, width in pixels")
    metric: str
    metric_version: int
    settings: dict[str, JsonValue] = Field(description="the metric's own settings, e.g. the class rule")
    network: NetworkRecord | None = Field(description="segmenter or backbone, null where the metric needs none")
    reference: ReferenceRecord | None = Field(description="null where the metric needs none")
    bootstrap: BootstrapCard


def protocol_id(record: ProtocolRecord) -> str:
    """Name a record by 16 hexadecimal digits: the sha256 of its canonical JSON.

    Numbers with different ids are not comparable and share neither a column nor a rank.
    """
    return stable_hash(record.model_dump(mode="json"), 16)
