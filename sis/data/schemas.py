# SPDX-License-Identifier: Apache-2.0
"""The Arrow schemas of the tables that pass between the stages."""

from __future__ import annotations

import pyarrow as pa

#: Same layout as the image feature of Hugging Face `datasets`: encoded bytes plus a (relative) path.
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

#: One label map with its real photograph. `width` and `height` are the dataset's; the pictures of an augmented split
#: are stored larger. `image` is null where no photograph was published, `instance` where there are none,
#: `source_label` (the label map in its original size) where `label` is that already.
PAIRS = pa.schema(
    [
        ("image_id", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("reference_id", pa.string()),
        ("pixel_sha256", pa.string()),
        ("label_sha256", pa.string()),
        ("source_width", pa.int32()),
        ("source_height", pa.int32()),
        ("source_mode", pa.string()),
        ("source_sha256", pa.string()),
        ("image", IMAGE),
        ("label", IMAGE),
        ("instance", IMAGE),
        ("source_label", IMAGE),
    ]
)

#: One generated image.
IMAGES = pa.schema(
    [
        ("image_id", pa.string()),
        ("sample_index", pa.int32()),
        ("seed", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("pixel_sha256", pa.string()),
        ("image", IMAGE),
    ]
)

#: One number. `value` is null where a metric is undefined; `note` then says why.
SCORES = pa.schema(
    [
        ("dataset", pa.string()),
        ("protocol", pa.string()),
        ("protocol_id", pa.string()),
        ("run", pa.string()),
        ("run_id", pa.string()),
        ("method", pa.string()),
        ("title", pa.string()),
        ("kind", pa.string()),
        ("role", pa.string()),
        ("seed", pa.int64()),
        ("metric", pa.string()),
        ("class_name", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("unit", pa.string()),
        ("direction", pa.string()),
        ("n_images", pa.int64()),
        ("n_maps", pa.int64()),
        ("stand_in", pa.string()),
        ("note", pa.string()),
        ("replicates", pa.list_(pa.float64())),
    ]
)

#: Scores as they are published: without the bootstrap replicates.
PUBLISHED_SCORES = pa.schema([f for f in SCORES if f.name != "replicates"])

#: Parts of a loss that methods may give; each has a column of the training log.
LOSS_PARTS = ("simple", "vlb")

#: Channels of a photograph.
CHANNELS = ("red", "green", "blue")

#: One row a logged training step. `loss` and its parts are means over the step's images; `gradient_norm` is infinite
#: where fp16 skipped the step; `seconds` (of steps, not of pictures) and `images` count from the start of training.
#: Steps with a picture tell mean and standard deviation of each channel, 0..255, of its samples and its photographs.
TRAINING_LOG = pa.schema(
    [
        ("step", pa.int64()),
        ("stage", pa.int64()),
        ("loss", pa.float64()),
        *[(name, pa.float64()) for name in LOSS_PARTS],
        ("learning_rate", pa.float64()),
        ("gradient_norm", pa.float64()),
        ("seconds", pa.float64()),
        ("images", pa.int64()),
        *[
            (f"{what}_{value}_{channel}", pa.float64())
            for what in ("sample", "data")
            for value in ("mean", "std")
            for channel in CHANNELS
        ],
    ]
)

#: One class of one split in a dataset card. `evaluator_id` is null for ids that no score counts; `share` is the part of
#: all label pixels of the split, 0..1; unlabelled pixels are the last row of a split whose table has a void id.
DATASET_CARD = pa.schema(
    [
        ("dataset", pa.string()),
        ("split", pa.string()),
        ("class_id", pa.int32()),
        ("class_name", pa.string()),
        ("evaluator_id", pa.int32()),
        ("ignored", pa.bool_()),
        ("dead", pa.bool_()),
        ("pixels", pa.int64()),
        ("share", pa.float64()),
        ("images", pa.int64()),
    ]
)
