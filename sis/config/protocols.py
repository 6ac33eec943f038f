# SPDX-License-Identifier: Apache-2.0
"""Protocol cards: how images are judged, and the id that names everything a number depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import Field, JsonValue, model_validator

from sis.config.base import Name, StrictModel
from sis.config.judges import ClassRule, FeaturesCard, IidmCard, LpipsCard, MsSsimCard, Positive, SegmenterCard
from sis.data.manifest import stable_hash
from sis.errors import SisError


class DrawCard(StrictModel):
    """Label maps drawn with replacement: the m-th time that one is drawn, its m-th sample counts."""

    images: Positive = Field(description="images in all")
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="seed of Python's `random.choices`")


class ReferenceCard(StrictModel):
    """The real images that generated ones are compared with."""

    split: Name = Field(description="split of the dataset whose photographs are the reference")
    count: Positive | None = Field(default=None, description="the first so many by image id; null = the whole split")
    as_drawn: bool = Field(
        default=False, description="with `samples.drawn`: each photograph counts as often as its label map was drawn"
    )


class SamplesCard(StrictModel):
    """How many samples of one label map a metric looks at; a run with fewer leaves the metric undefined."""

    quality: Positive = Field(default=1, description="samples per label map for miou, accuracy and fd (the first)")
    diversity: Annotated[int, Field(ge=2)] = Field(
        default=2, description="samples per label map for lpips and ms_ssim: all pairs of the first so many"
    )
    distribution: Positive | None = Field(
        default=None, description="samples per label map for fid and its kin; null: as many as `quality`"
    )
    drawn: DrawCard | None = Field(
        default=None, description="of those, fid and its kin take label maps drawn with replacement; null: all"
    )


class BootstrapCard(StrictModel):
    """Resampling of label maps behind every interval."""

    replicates: Positive = Field(description="number of bootstrap replicates")
    seed: Annotated[int, Field(ge=0)] = Field(description="seed of the resampled label maps, shared by every run")


class MetricEntry(StrictModel):
    """A metric of a protocol with settings of its own; what is left out is the protocol's."""

    metric: Name = Field(description="file stem in evaluators/metrics")
    name: Name | None = Field(
        default=None, description="name in score tables; null: the one that the metric gives itself"
    )
    segmenter: SegmenterCard | Name | None = Field(default=None, description="as in the protocol")
    features: FeaturesCard | None = Field(default=None, description="as in the protocol")
    samples: SamplesCard | None = Field(default=None, description="as in the protocol")
    lpips: LpipsCard | None = Field(default=None, description="as in the protocol")
    ms_ssim: MsSsimCard | None = Field(default=None, description="as in the protocol")
    iidm: IidmCard | None = Field(default=None, description="as in the protocol")
    class_rule: ClassRule | None = Field(default=None, description="as in the protocol")


class ProtocolCard(StrictModel):
    """One way to judge image sets of one dataset (config/protocols/<name>.yaml)."""

    name: Name = Field(description="name of the protocol, equal to the file's stem")
    title: Annotated[str, Field(min_length=1)] = Field(description="name in tables")
    dataset: Name = Field(description="dataset whose label maps are drawn")
    split: Name = Field(description="split whose label maps are drawn")
    labels: Name | None = Field(
        default=None,
        description="label maps at full size, for segmenters that ask for them; source: those of `dataset` before they "
        "were resized, each of its own size; or a dataset card with the same ids",
    )
    reference: ReferenceCard = Field(description="real images of the distribution metrics")
    samples: SamplesCard = Field(default=SamplesCard(), description="samples per label map that metrics look at")
    segmenter: SegmenterCard | Name | None = Field(
        default=None,
        description="the judging network: a recipe of training, or the name of a preset of config/segmenters",
    )
    features: FeaturesCard = Field(default=FeaturesCard(), description="network of fid and its kin")
    metrics: Annotated[list[Name | MetricEntry], Field(min_length=1)] = Field(
        description="file stems in evaluators/metrics, or `{metric: STEM, ...}` with settings of their own"
    )
    lpips: LpipsCard = Field(default=LpipsCard(), description="settings of the metric lpips")
    ms_ssim: MsSsimCard = Field(default=MsSsimCard(), description="settings of the metric ms_ssim")
    iidm: IidmCard = Field(default=IidmCard(), description="settings of style, aesthetic and total")
    class_rule: ClassRule | None = Field(
        default=None,
        description="classes that the mIoU averages: union (with labels or predictions), gt (with labels), all; "
        "null: the rule of a preset's authors, else union",
    )
    bootstrap: BootstrapCard = Field(description="intervals")
    batch_size: Positive = Field(default=32, description="fixed batch of the judging networks; the last is padded")
    version: Positive = Field(description="raise it when the meaning of the protocol changes")

    @model_validator(mode="after")
    def _photographs_are_those_of_the_drawn_maps(self) -> Self:
        if self.reference.as_drawn:
            if self.samples.drawn is None:
                raise ValueError("reference.as_drawn needs `samples.drawn`")
            if self.reference.split != self.split or self.reference.count is not None:
                raise ValueError("reference.as_drawn needs the whole split whose label maps are drawn")
        return self

    @model_validator(mode="before")
    @classmethod
    def _source_is_the_dataset_itself(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("labels") == "source":
            return {**data, "labels": data.get("dataset")}
        return data

    def trained_segmenter(self) -> SegmenterCard | None:
        """The recipe of the one segmenter that is trained for this protocol, if any metric has one.

        Raises SisError for two recipes.
        """
        recipes: list[SegmenterCard] = []
        for entry in self.entries():
            found = entry.card.segmenter
            if isinstance(found, SegmenterCard) and found not in recipes:
                recipes.append(found)
        if len(recipes) > 1:
            raise SisError(f"protocol {self.name!r} trains {len(recipes)} segmenters", fix="one is the most")
        return recipes[0] if recipes else None

    def entries(self) -> list[Entry]:
        """The metrics in order, each with the card that it sees."""
        return [_entry(self, metric) for metric in self.metrics]


@dataclass(frozen=True)
class Entry:
    """One metric of a protocol: its file's stem, and the protocol's card with the entry's own settings in it.

    name: what it is called in score tables, "" for what it calls itself.
    """

    stem: str
    card: ProtocolCard
    name: str = ""


def _entry(card: ProtocolCard, metric: str | MetricEntry) -> Entry:
    if isinstance(metric, str):
        return Entry(metric, card)
    own = {name: getattr(metric, name) for name in metric.model_fields_set - {"metric", "name"}}
    return Entry(metric.metric, card.model_copy(update=own), metric.name or "")


class ReferenceRecord(StrictModel):
    """The real images behind one number."""

    split: str
    pairs_sha256: str
    count: int


class NetworkRecord(StrictModel):
    """The weights behind one number; of a stand-in the rule that makes them."""

    name: str
    sha256: str
    verified: bool = Field(default=True, description="false: its publisher states no hash to compare with")


class ProtocolRecord(StrictModel):
    """Everything that defines one number, except the images themselves."""

    version: int = Field(description="version of the protocol card")
    dataset: str
    split: str
    pairs_sha256: str = Field(description="hash of the ids and pixels of the judged label maps")
    labels_sha256: str = Field(description="hash of label maps at full size, empty where nothing looks at them")
    label_maps: int
    samples_per_map: int
    size: Annotated[list[int], Field(min_length=2, max_length=2)] = Field(description="height, width in pixels")
    metric: str
    metric_version: int
    settings: dict[str, JsonValue] = Field(description="the metric's own settings, e.g. the class rule")
    judge: dict[str, JsonValue] | None = Field(description="card of the network and of its feeding, null without one")
    networks: list[NetworkRecord] = Field(description="segmenter, extractor or backbone; several for a combined metric")
    reference: ReferenceRecord | None = Field(description="null where the metric needs none")
    bootstrap: BootstrapCard


def protocol_id(record: ProtocolRecord) -> str:
    """Name a record by 16 hexadecimal digits: the sha256 of its canonical JSON.

    Numbers with different ids are not comparable and share neither a column nor a rank.
    """
    return stable_hash(record.model_dump(mode="json"), 16)
