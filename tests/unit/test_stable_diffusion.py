# SPDX-License-Identifier: Apache-2.0
"""Stable Diffusion's U-Net and ControlNet: shapes, the published sizes, hints that are embedded once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sis.config.files import named
from sis.config.models import BaseCard
from sis.config.strict_yaml import validate
from sis.errors import SisError
from sis.nets.latent.controlled import ControlledUNet
from sis.nets.latent.kl import KLConfig, KLFirstStage
from sis.nets.latent.stable_diffusion import SDConfig, config_of, controlnet, start_controlnet, unet

SMALL = {"block_out_channels": [8, 16, 16], "layers_per_block": 1, "attention": [1, 4], "heads": [2, 4, 2],
         "cross_attention_dim": 6, "norm_groups": 4}  # fmt: skip


def small(**changes: Any) -> ControlledUNet:
    """A network with random zero convolutions, so that the hint matters."""
    config = SDConfig.model_validate(SMALL | changes)
    network = ControlledUNet(unet(config), controlnet(config, [4, 8, 8], hint_inputs=2)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    return network


@pytest.fixture(scope="module")
def network() -> ControlledUNet:
    return small()


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 4, 8, 12), (2, 3, 6), (2, 2, 32, 48))
    x, context, hint = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, torch.tensor([1, 981]), context, hint.sigmoid()


@torch.no_grad()
def test_a_hint_embedded_beforehand_gives_what_diffusers_gives(
    network: ControlledUNet, inputs: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    x, t, context, hint = inputs
    skips, middle = network.controlnet(x, t, context, hint, return_dict=False)
    residuals = {"down_block_additional_residuals": skips, "mid_block_additional_residual": middle}
    theirs = network.unet(x, t, context, return_dict=False, **residuals)[0]
    assert torch.equal(network(x, t, context, hint), theirs)
    assert torch.equal(network(x, t, context, network.embed_hint(hint)), theirs)
    assert not torch.allclose(network(x, t, context), theirs, atol=1e-3), "the hint matters"
    assert torch.equal(network(x, t, context), network.unet(x, t, context).sample)


@torch.no_grad()
def test_strength_multiplies_the_residuals(
    network: ControlledUNet, inputs: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    x, t, context, hint = inputs
    torch.testing.assert_close(network(x, t, context, hint, strength=0.0), network(x, t, context))
    skips, middle = network.controlnet(x, t, context, hint, conditioning_scale=0.5, return_dict=False)
    residuals = {"down_block_additional_residuals": skips, "mid_block_additional_residual": middle}
    theirs = network.unet(x, t, context, return_dict=False, **residuals)[0]
    torch.testing.assert_close(network(x, t, context, hint, strength=0.5), theirs)


@pytest.mark.parametrize("shape", [(2, 3, 32, 48), (2, 2, 16, 24), (2, 8, 4, 6), (2, 2, 8, 12)])
def test_what_is_no_hint_is_refused(
    network: ControlledUNet, inputs: tuple[Tensor, ...], shape: tuple[int, ...]
) -> None:
    x, t, context, _ = inputs
    with pytest.raises(SisError, match=r"latents of 12x8 need 2 channels and 48x32 pixels"):
        network(x, t, context, torch.zeros(shape))


@torch.no_grad()
def test_a_started_controlnet_has_the_encoder_and_changes_nothing_yet(inputs: tuple[Tensor, ...]) -> None:
    config = SDConfig.model_validate(SMALL)
    base, branch = small().unet, controlnet(config, [4, 8, 8], hint_inputs=2)
    start_controlnet(branch, base)
    copied, own = branch.state_dict(), base.state_dict()
    shared = [name for name in copied if name in own]
    assert {name.split(".")[0] for name in shared} == {"conv_in", "time_embedding", "down_blocks", "mid_block"}
    assert all(torch.equal(copied[name], own[name]) for name in shared)
    x, t, context, hint = inputs
    assert torch.equal(ControlledUNet(base, branch)(x, t, context, hint), base(x, t, context).sample)
    assert all(not residual.any() for residual in ControlledUNet(base, branch).residuals(x, t, context, hint))


def test_a_controlnet_of_another_shape_is_not_started() -> None:
    other = controlnet(SDConfig.model_validate(SMALL | {"cross_attention_dim": 7}))
    with pytest.raises(SisError, match="down_blocks is not shaped like the U-Net's"):
        start_controlnet(other, unet(SDConfig.model_validate(SMALL)))


def test_checkpointing_changes_no_gradient(inputs: tuple[Tensor, ...]) -> None:
    found = []
    for wanted in (False, True):
        network = small().train()
        network.checkpointing = wanted
        assert network.checkpointing is wanted and network.unet.is_gradient_checkpointing is wanted
        network(*inputs).square().mean().backward()
        found.append([p.grad for p in network.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 100
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("base", "of_unet", "of_controlnet"),
    [("sd21", 865_910_724, 364_228_240), ("sd15", 859_520_964, 361_279_120)],
)
def test_the_cards_name_the_published_networks(base: str, of_unet: int, of_controlnet: int) -> None:
    cards = [named("bases", f"{base}-{part}", BaseCard) for part in ("base", "vae")]
    assert [card.method for card in cards] == ["latent_diffusion", "autoencoder_kl"]
    assert cards[0].prediction_type == "epsilon" and cards[0].uses["autoencoder"] == cards[1].name
    config = validate(SDConfig, cards[0].fit, "the card")
    with torch.device("meta"):
        first_stage = KLFirstStage(validate(KLConfig, cards[1].fit, "the card"))
        networks = (unet(config), controlnet(config), first_stage)
    assert [sum(p.numel() for p in network.parameters()) for network in networks] == [
        of_unet, of_controlnet, 83_653_863,
    ]  # fmt: skip
    assert (config.factor, first_stage.factor, first_stage.scale) == (8, 8, 0.18215)


@pytest.mark.parametrize("changes", [{}, {"linear_projection": False, "heads": [1, 1, 2]}, {"transformer_layers": 2}])
def test_a_shape_is_read_back_from_diffusers_configuration(changes: dict[str, Any]) -> None:
    config = SDConfig.model_validate(SMALL | changes | {"in_channels": 5, "out_channels": 3})
    with torch.device("meta"):
        assert config_of(unet(config).config) == config
        assert config_of({**controlnet(config).config, "out_channels": 3}) == config


def test_options_that_a_configuration_leaves_out_are_diffusers_own() -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        default = UNet2DConditionModel()
    assert config_of({}) == config_of(default.config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_embed_type": "timestep"}, "class_embed_type: timestep"),
        ({"down_block_types": ["AttnDownBlock2D"] * 4}, r"blocks \['AttnDownBlock2D'"),
        ({"up_block_types": ["UpBlock2D"] * 4}, "blocks .* and .'UpBlock2D'"),
        ({"transformer_layers_per_block": [1, 2, 10]}, r"transformer_layers_per_block: \[1, 2, 10\]"),
        ({"norm_num_groups": 31}, "norm_groups 31 does not divide"),
    ],
)
def test_networks_of_other_families_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SisError, match=message) as caught:
        config_of(options, "unet/config.json")
    assert "unet/config.json" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": [2, 2]}, "heads needs a number for each of 3 levels"),
        ({"heads": [2, 3, 2]}, r"heads \[2, 3, 2\] do not divide"),
        ({"norm_groups": 5}, "norm_groups 5 does not divide"),
        ({"attention": [8]}, r"attention at \[8\], the levels have the factors \[1, 2, 4\]"),
        ({"prediction_type": "sample"}, "prediction_type: should be 'epsilon' or 'v_prediction'"),
    ],
)
def test_shapes_that_cannot_be_built_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SisError, match=message):
        validate(SDConfig, SMALL | changes, "a run")
