# SPDX-License-Identifier: Apache-2.0
"""Text embeddings of constant prompts: computed once from a local CLIP text encoder, and kept as three buffers.

What Stable Diffusion reads: SD 1.5 the last hidden state of CLIP ViT-L/14; SD 2.x the last but one of OpenCLIP
ViT-H/14; both after the encoder's final layer norm. SD 2.x ships its encoder with the last layer cut off (23 of 24), so
that the last hidden state is the one that is wanted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from sis.data.weight_files import WeightFile, read_weights
from sis.data.weight_names import refuse_differences
from sis.errors import SisError

if TYPE_CHECKING:
    from transformers import CLIPTextConfig

#: When a prompt is used: in training, in sampling, in the other branch of guidance.
Purpose = Literal["train", "positive", "negative"]

#: The buffers that hold the embeddings; a module cannot have one called `train`.
BUFFERS: dict[Purpose, str] = {"train": "train_text", "positive": "positive", "negative": "negative"}

#: OpenCLIP's whole ViT-H/14 (layers, width), whose last layer Stable Diffusion 2 does not use.
_VIT_H = (24, 1024)
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
#: What a tokenizer's folder holds: one of these sets of files.
_VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
#: Files of whole CLIP models hold more than the text encoder, older ones its positions, too.
_NOT_TEXT = re.compile(r"vision_model\.|visual_projection|text_projection|logit_scale|.*position_ids$")


class PromptEmbeddings(nn.Module):
    """Embeddings of three constant prompts, `(tokens, width)` float32 each; zero until they are filled."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.tokens, self.width = tokens, width
        for name in BUFFERS.values():
            self.register_buffer(name, torch.zeros(tokens, width))

    def of(self, purpose: Purpose, batch: int) -> Tensor:
        """The embedding of a prompt for each image of a batch, `(batch, tokens, width)`."""
        return self.get_buffer(BUFFERS[purpose]).expand(batch, -1, -1)

    def fill(self, embeddings: Mapping[Purpose, Tensor]) -> None:
        """Take embeddings `(tokens, width)` over."""
        for purpose, value in embeddings.items():
            self.get_buffer(BUFFERS[purpose]).copy_(value)


@dataclass(frozen=True)
class Embedded:
    """Embeddings `(texts, tokens, width)` and what made them: the encoder's weights, layers used, padding token."""

    embeddings: Tensor
    facts: dict[str, Any]


def embed(texts: Sequence[str], encoder: Path) -> Embedded:
    """Embed texts with a text encoder on this machine; nothing is ever fetched.

    Args:
        texts: cut off and padded to the encoder's number of positions (77), as CLIP does.
        encoder: a base model's folder with `text_encoder/` and `tokenizer/`, or one folder with the files of both:
            `config.json`, `model.safetensors` (or `pytorch_model.bin`), and the vocabulary.

    Raises SisError for a folder that lacks something, and for weights that are not those of the encoder that its
    configuration speaks of.
    """
    from transformers import CLIPTextModel

    weights_folder, vocabulary_folder = _folders(encoder)
    config = _config(weights_folder)
    # OpenCLIP pads with zeros where CLIP repeats the end-of-text token; SD 2's own tokenizer says so itself.
    whole = (config.num_hidden_layers, config.hidden_size) == _VIT_H
    if whole:
        config.num_hidden_layers -= 1
    tokens, padding = _tokens(texts, vocabulary_folder, config.max_position_embeddings, 0 if whole else None)
    if int(tokens.max()) >= config.vocab_size:
        what = f"the tokenizer knows token {int(tokens.max())}, the encoder {config.vocab_size} tokens"
        raise SisError(what, where=vocabulary_folder, fix="use the tokenizer of the same model")
    model = CLIPTextModel(config)
    file = _fill(model, weights_folder)
    with torch.inference_mode():
        embeddings = model.eval()(input_ids=tokens).last_hidden_state.float().clone()
    facts = {"encoder": file.path.name, "sha256": file.sha256, "layers": config.num_hidden_layers, "padding": padding}
    return Embedded(embeddings, facts)


def _folders(encoder: Path) -> tuple[Path, Path]:
    """Where the encoder and the tokenizer lie."""
    fix = "fetch the base model yourself and name its folder (with text_encoder/ and tokenizer/)"
    if not encoder.is_dir():
        raise SisError("no such folder; text encoders are read from this machine alone", where=encoder, fix=fix)
    inside = (encoder / "text_encoder").is_dir()
    weights, vocabulary = (encoder / "text_encoder", encoder / "tokenizer") if inside else (encoder, encoder)
    if not any((weights / name).is_file() for name in _WEIGHTS) or not (weights / "config.json").is_file():
        raise SisError(f"no text encoder here (config.json and {' or '.join(_WEIGHTS)})", where=weights, fix=fix)
    if not any(all((vocabulary / name).is_file() for name in names) for names in _VOCABULARIES):
        needed = " or ".join(" and ".join(names) for names in _VOCABULARIES)
        raise SisError(f"no tokenizer here ({needed})", where=vocabulary, fix=fix)
    return weights, vocabulary


def _config(folder: Path) -> CLIPTextConfig:
    from transformers import CLIPTextConfig

    try:
        config = CLIPTextConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        raise SisError("not the configuration of a CLIP text encoder", where=folder / "config.json") from error
    assert isinstance(config, CLIPTextConfig)
    return config


def _tokens(texts: Sequence[str], folder: Path, length: int, padding: int | None) -> tuple[Tensor, int]:
    """Token ids, int64 `(texts, length)`, and the one that they are padded with; None: the tokenizer's own."""
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SisError("not a tokenizer of CLIP", where=folder) from error
    filler = padding if padding is not None else tokenizer.pad_token_id
    assert isinstance(filler, int)
    rows = [tokenizer(text, truncation=True, max_length=length)["input_ids"] for text in texts]
    return torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows]), filler


def _fill(model: nn.Module, folder: Path) -> WeightFile:
    """Put a file's weights into an encoder, which may have fewer layers than the file."""
    file = read_weights(next(folder / name for name in _WEIGHTS if (folder / name).is_file()))
    needed = {name.removeprefix("text_model."): name for name in model.state_dict()}
    kept = {k.removeprefix("text_model."): v for k, v in file.tensors.items() if not _NOT_TEXT.match(k)}
    layers = 1 + max((int(k.split(".")[2]) for k in needed if k.startswith("encoder.layers.")), default=-1)
    found = {k: v for k, v in kept.items() if not k.startswith(f"encoder.layers.{layers}.")}
    state = {k: model.state_dict()[name] for k, name in needed.items()}
    refuse_differences(found, state, file.path, fix="config.json and the weights must be of one text encoder")
    model.load_state_dict({needed[k]: value.float() for k, value in found.items()})
    return file
