# SPDX-License-Identifier: Apache-2.0
"""SDM's U-Net: shapes, conditions and starting points."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from plain_unet import DEMO, label_maps, network, noisy, plain
from torch import Tensor, nn

from sis.nets.patches import PatchedUNet
from sis.nets.sdm_unet import ResBlock, SDMUNet, UNetConfig, timestep_embedding
from sis.nets.spade import SPADE, groups_of

LABELS = 5


def config(**changes: Any) -> UNetConfig:
    small = {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [2], "head_channels": 8, "spade_hidden": 8}
    return UNetConfig.model_validate(small | changes)


def awake(network: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every weight with small numbers, so that nothing is zero any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return network.eval()


def inputs(size: int = 16, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, size, size, generator=generator)
    ids = torch.randint(0, LABELS, (batch, size, size), generator=generator)
    return x, torch.arange(batch) * 7, nn.functional.one_hot(ids, LABELS).permute(0, 3, 1, 2).float()


WAYS = ["spade", "spade_encoder", "spade_both", "concat"]


@pytest.mark.parametrize("conditioning", WAYS)
@pytest.mark.parametrize("learn_sigma", [True, False])
@pytest.mark.parametrize("multipliers", [[1], [1, 2], [2, 1, 3]])
def test_the_output_has_the_shape_of_the_input(conditioning: str, learn_sigma: bool, multipliers: list[int]) -> None:
    network = SDMUNet(config(conditioning=conditioning, learn_sigma=learn_sigma, multipliers=multipliers), 3, LABELS)
    x, t, label = inputs()
    out = network(x[..., :8], t, label[..., :8])
    assert out.shape == (2, 6 if learn_sigma else 3, 16, 8)


def test_a_fresh_network_predicts_zero() -> None:
    assert not SDMUNet(config(), 3, LABELS)(*inputs()).any()


@pytest.mark.parametrize("conditioning", WAYS)
def test_the_label_map_matters_and_null_is_a_condition_of_its_own(conditioning: str) -> None:
    network = awake(SDMUNet(config(conditioning=conditioning), 3, LABELS))
    x, t, label = inputs()
    outputs = [network(x, t, condition) for condition in (label, label.flip(-1), torch.zeros_like(label))]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not torch.allclose(outputs[i], outputs[j], atol=1e-3)


def test_time_matters() -> None:
    network = awake(SDMUNet(config(), 3, LABELS))
    x, _, label = inputs()
    assert not torch.allclose(network(x, torch.tensor([1, 1]), label), network(x, torch.tensor([900, 900]), label))


def test_images_of_a_batch_do_not_touch_each_other() -> None:
    network = awake(SDMUNet(config(), 3, LABELS))
    x, t, label = inputs(batch=3)
    whole = network(x, t, label)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("conditioning", WAYS)
def test_every_weight_is_used(conditioning: str) -> None:
    network = awake(SDMUNet(config(conditioning=conditioning), 3, LABELS)).train()
    network(*inputs()).square().sum().backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias before a normalisation with one channel a group cannot change anything.
    assert not [n for n in idle if not n.endswith(("conv1.bias", "stem.bias", "conv2.bias"))]


def test_spade_reads_the_top_left_pixel_of_each_cell() -> None:
    spade = awake(SPADE(8, LABELS, 4))
    x, label = torch.randn(1, 8, 4, 4), inputs(8, 1)[2]
    plain = spade(x, label)
    elsewhere = label.clone()
    elsewhere[..., 1::2, :], elsewhere[..., :, 1::2] = 0, 0
    assert torch.equal(spade(x, elsewhere), plain)
    assert torch.equal(spade(x, label[..., ::2, ::2]), plain)
    moved = label.clone()
    moved[..., ::2, ::2] = 0
    assert not torch.allclose(spade(x, moved), plain)


def test_spade_with_silent_convolutions_is_a_plain_group_norm() -> None:
    spade = SPADE(8, LABELS, 4)
    for conv in (spade.gamma, spade.beta):
        nn.init.zeros_(conv.weight)
        assert conv.bias is not None
        nn.init.zeros_(conv.bias)
    x = torch.randn(2, 8, 4, 4) * 3 + 1
    torch.testing.assert_close(spade(x, inputs(4)[2]), nn.functional.group_norm(x, 8, eps=1e-5))


@pytest.mark.parametrize(("channels", "groups"), [(256, 32), (32, 32), (8, 8), (48, 24), (7, 7), (33, 11), (1, 1)])
def test_the_number_of_groups_divides_the_channels(channels: int, groups: int) -> None:
    assert groups_of(channels, 32) == groups


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_patches_of_one_pixel_are_the_plain_network(learn_sigma: bool) -> None:
    small = config(learn_sigma=learn_sigma)
    plain, patched = SDMUNet(small, 3, LABELS), PatchedUNet(small, 3, LABELS, 1)
    awake(plain)
    patched.unet.load_state_dict(plain.state_dict())
    torch.testing.assert_close(patched.eval()(*inputs()), plain(*inputs()), rtol=0, atol=0)


def test_patches_fold_pixels_into_channels_and_back() -> None:
    network = PatchedUNet(config(multipliers=[1]), 3, LABELS, 4)

    class Echo(nn.Module):
        def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
            assert x.shape == (2, 48, 4, 4) and label.shape == (2, LABELS * 16, 4, 4)
            return torch.cat([x, -x], 1)

    network.unet = Echo()  # type: ignore[assignment]
    x, t, label = inputs()
    out = network(x, t, label)
    assert torch.equal(out[:, :3], x) and torch.equal(out[:, 3:], -x)


def test_time_embeddings_begin_with_cosines() -> None:
    found = timestep_embedding(torch.tensor([0, 3]), 8)
    assert found.shape == (2, 8)
    assert found[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert found[1, 0].item() == pytest.approx(math.cos(3)) and found[1, 4].item() == pytest.approx(math.sin(3))
    assert found[1, 7].item() == pytest.approx(math.sin(3 * 10000**-0.75))
    assert timestep_embedding(torch.tensor([5]), 7).shape == (1, 7)


def test_fewer_groups_change_the_norms_and_not_the_parameters() -> None:
    def network(groups: int) -> SDMUNet:
        config = UNetConfig(width=8, multipliers=[1, 2], blocks=1, attention=[2], spade_hidden=4, groups=groups)
        return SDMUNet(config, 3, LABELS)

    few, many = network(4), network(32)
    assert {k: v.shape for k, v in few.state_dict().items()} == {k: v.shape for k, v in many.state_dict().items()}
    norms = [m for m in few.modules() if isinstance(m, torch.nn.GroupNorm)]
    assert norms and all(m.num_groups == 4 for m in norms)


@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("conditioning", WAYS)
@torch.inference_mode()
def test_the_network_is_its_formulas_bit_for_bit(conditioning: str, patch: int) -> None:
    for changes in ({}, DEMO, {"learn_sigma": False}):
        net = network(patch, conditioning=conditioning, **changes)
        x, label, t = noisy(3, 32, 48), label_maps(3, 32, 48), torch.tensor([0, 400, 999])
        assert torch.equal(net(x, t, label), plain(net, x, t, label))


@pytest.mark.parametrize(
    ("conditioning", "encoder", "decoder"),
    [("spade", False, True), ("spade_encoder", True, False), ("spade_both", True, True), ("concat", False, False)],
)
def test_spade_stands_where_the_row_of_table_iv_says(conditioning: str, encoder: bool, decoder: bool) -> None:
    net = SDMUNet(config(conditioning=conditioning), 3, LABELS)
    for part, wanted in ((net.encoder, encoder), (net.middle, decoder), (net.decoder, decoder)):
        blocks = [m for m in part.modules() if isinstance(m, ResBlock)]
        assert blocks and all(isinstance(n, SPADE) == wanted for b in blocks for n in (b.norm1, b.norm2))
    assert net.stem.in_channels == (3 + LABELS if conditioning == "concat" else 3)
    assert isinstance(net.norm, nn.GroupNorm) and net.norm.affine, "the last norm is plain in every row"


@pytest.mark.parametrize(
    ("label_channels", "millions"), [(151, 660.6), (20, 653.1), (36, 654.0), (184, 662.5)],
    ids=["ADE20K", "CelebA", "Cityscapes", "COCO"],
)  # fmt: skip
def test_the_full_size_networks_have_the_authors_number_of_parameters(label_channels: int, millions: float) -> None:
    with torch.device("meta"):
        net = SDMUNet(UNetConfig(), 3, label_channels)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == millions
    assert len(net.spade_norms((256, 256))) == 50


@pytest.mark.parametrize("conditioning", WAYS)
def test_norms_are_listed_with_the_sizes_that_they_see(conditioning: str) -> None:
    net, seen = network(conditioning=conditioning, blocks=2).unet, []
    for module in net.modules():
        if isinstance(module, SPADE):
            module.register_forward_hook(lambda module, inputs, _: seen.append((module, tuple(inputs[0].shape[-2:]))))
    net(noisy(1, 16, 24), torch.tensor([3]), label_maps(1, 16, 24))
    assert net.spade_norms((16, 24)) == seen


@pytest.mark.parametrize("conditioning", WAYS)
def test_checkpointing_keeps_every_bit_of_every_gradient(conditioning: str) -> None:
    net = network(2, conditioning=conditioning).train()
    x, label, t = noisy(2, 32, 32), label_maps(2, 32, 32), torch.tensor([5, 900])
    weights, found, runs = dict(net.named_parameters()), [], []
    first = net.unet.encoder[0].get_submodule("0.conv1")
    first.register_forward_hook(lambda *_: runs.append(net.checkpointing))
    for checkpointing in (False, True):
        net.checkpointing = checkpointing
        net.zero_grad()
        out = net(x, t, label)
        out.square().mean().backward()
        found.append({"out": out.detach()} | {n: w.grad for n, w in weights.items() if w.grad is not None})
    assert len(found[0]) == len(weights) + 1
    assert not [name for name in found[0] if not torch.equal(found[0][name], found[1][name])]
    assert runs == [False, True, True], "once plainly; once forwards and once again for the gradients"
    with torch.no_grad():
        assert torch.equal(net(x, t, label), found[0]["out"])
    assert len(runs) == 4, "without gradients nothing is computed twice"
    assert "checkpointing" not in "".join(net.state_dict())
