# SPDX-License-Identifier: Apache-2.0
"""SDM-LoRA: it begins as its base, trains its additions alone, reads the label map in the decoder, and guides by it."""

from __future__ import annotations

from typing import Any

import pytest
import small_latents
import torch
from small_latents import BASE, Latents, base, context, labels, map_batch, noise, of, parts, sdm_lora, train_batch
from torch import Tensor, nn
from torch.nn import functional as F

from sis.config.recipe import Recipe
from sis.errors import SisError
from sis.methods.latent_diffusion import LatentDiffusion
from sis.methods.sdm_lora import SDMLoRA
from sis.nets.latent.lora import LoRAConfig, add_lora, merge_lora, merged
from sis.nets.latent.spade_norm import ModulatedNorm
from sis.training.learner import Learner
from sis.training.ranks import ALONE

CLASSES = 11


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    drawn = noise(batch, seed=4)
    return drawn.normal("x", 0, (4, 8, 8)), drawn.integers("t", 0, (), 1000), drawn.normal("text", 0, (3, 8))


def trained(**options: Any) -> SDMLoRA:
    """SDM-LoRA whose additions are no longer zero."""
    method = sdm_lora(**options)
    small_latents.stirred(method.network)
    method.network.eval()
    return method


# LoRA


def adapted() -> tuple[nn.Module, nn.Module]:
    """A U-Net and its copy with LoRA that does something."""
    plain, other = base().network, base().network
    add_lora(other, LoRAConfig(lora_rank=2, lora_alpha=3.0))
    small_latents.stirred(plain)
    small_latents.stirred(other)
    theirs = plain.state_dict()
    own = {k: theirs.get(k.replace(".base_layer.", "."), v) for k, v in other.state_dict().items()}
    other.load_state_dict(own)
    return plain.eval(), other.eval()


PLACE = "mid_block.attentions.0.transformer_blocks.0.attn1"


def test_state_dict_names_are_those_that_are_documented() -> None:
    _, network = adapted()
    found = {k: tuple(v.shape) for k, v in network.state_dict().items() if k.startswith(f"{PLACE}.to_out")}
    assert found == {
        f"{PLACE}.to_out.0.base_layer.weight": (16, 16),
        f"{PLACE}.to_out.0.base_layer.bias": (16,),
        f"{PLACE}.to_out.0.lora_A.default.weight": (2, 16),
        f"{PLACE}.to_out.0.lora_B.default.weight": (16, 2),
    }
    kinds = {k.split(".lora_A")[0].split("attn")[1] for k in network.state_dict() if "lora_A" in k}
    assert kinds == {f"{n}.{p}" for n in (1, 2) for p in ("to_q", "to_k", "to_v", "to_out.0")}


def test_merging_adds_the_scaled_product_and_keeps_the_answers() -> None:
    plain, network = adapted()
    x, t, text = inputs()
    with torch.no_grad():
        wanted, before = network(x, t, text).sample, plain(x, t, text).sample
        state = network.state_dict()
        product = state[f"{PLACE}.to_q.lora_B.default.weight"] @ state[f"{PLACE}.to_q.lora_A.default.weight"]
        merge_lora(network)
        assert torch.allclose(network(x, t, text).sample, wanted, atol=1e-5)
        assert not torch.allclose(wanted, before, atol=1e-3)
    difference = network.state_dict()[f"{PLACE}.to_q.weight"] - plain.state_dict()[f"{PLACE}.to_q.weight"]
    assert torch.allclose(difference, 3.0 / 2 * product, atol=1e-6) and product.abs().max() > 0.01
    assert set(network.state_dict()) == set(plain.state_dict())


def test_what_is_merged_for_a_while_is_the_very_same_afterwards() -> None:
    _, network = adapted()
    x, t, text = inputs()
    state = {k: v.clone() for k, v in network.state_dict().items()}
    with torch.no_grad():
        apart = network(x, t, text).sample
        with merged(network):
            assert not torch.equal(network.state_dict()[f"{PLACE}.to_q.base_layer.weight"],
                                   state[f"{PLACE}.to_q.base_layer.weight"])  # fmt: skip
            assert torch.allclose(network(x, t, text).sample, apart, atol=1e-5)
        assert torch.equal(network(x, t, text).sample, apart)
        with pytest.raises(KeyError), merged(network):
            raise KeyError
    assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())


def test_lora_needs_attention_and_is_added_once() -> None:
    _, network = adapted()
    with pytest.raises(SisError, match="has LoRA already"):
        add_lora(network, LoRAConfig())
    with pytest.raises(SisError, match=r"to_q, to_k, to_v, to_out\.0.*this network has none"):
        add_lora(nn.Conv2d(3, 3, 1), LoRAConfig())


# SPADE in the decoder


def test_it_begins_as_its_base_whatever_the_label_map() -> None:
    method, (x, t, text) = sdm_lora(), inputs()
    with torch.no_grad():
        wanted = method.context.uses["base"].network(x, t, text).sample
        for layout in (method.layout(labels(2), None), torch.zeros(2, CLASSES, 8, 8)):
            assert torch.equal(method.network.eval()(x, t, text, layout), wanted)


def test_a_norm_is_the_trained_one_then_one_plus_gamma_and_beta() -> None:
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 8)
    modulated = ModulatedNorm(norm, 3, 6)
    for weight in modulated.parameters():
        nn.init.normal_(weight)
    x, layout = torch.randn(2, 8, 4, 4), torch.randn(2, 3, 8, 8)
    modulated.layout = layout
    small = layout[:, :, ::2, ::2]
    spade = modulated.spade
    hidden = F.relu(F.conv2d(small, spade.shared.weight, spade.shared.bias, padding=1))
    gamma, beta = (F.conv2d(hidden, layer.weight, layer.bias, padding=1) for layer in (spade.gamma, spade.beta))
    wanted = F.group_norm(x, 4, norm.weight, norm.bias) * (1 + gamma) + beta
    assert torch.allclose(modulated(x), wanted, atol=1e-5)


@pytest.mark.parametrize("middle", [False, True])
def test_the_decoder_alone_sees_the_label_map(middle: bool) -> None:
    method, (x, t, text) = trained(spade_middle=middle), inputs()
    seen: dict[str, list[Tensor]] = {"encoder": [], "middle": [], "end": []}
    unet = method.network.unet
    unet.down_blocks[-1].register_forward_hook(lambda _, __, out: seen["encoder"].append(out[0]))
    unet.mid_block.register_forward_hook(lambda _, __, out: seen["middle"].append(out))
    with torch.no_grad():
        for seed in (0, 1):
            seen["end"].append(method.network(x, t, text, method.layout(labels(2, seed), None)))
    assert torch.equal(*seen["encoder"]) and torch.equal(*seen["middle"]) is not middle
    assert not torch.allclose(*seen["end"], atol=1e-3)
    names = {k.split(".spade.")[0] for k in method.network.state_dict() if ".spade." in k}
    levels = [f"up_blocks.{i}.resnets.{j}" for i in range(2) for j in range(2)]
    levels += [f"mid_block.resnets.{i}" for i in range(2)] if middle else []
    assert names == {f"unet.{level}.{norm}" for level in levels for norm in ("norm1", "norm2")}
    sizes = {unet_norm.channels: size for unet_norm, size in method.network.spade_norms((8, 8))}
    assert sizes[32] == (4, 4) and sizes[8] == (8, 8)
    assert len(method.network.spade_norms((8, 8))) == 2 * len(levels)


def test_label_maps_come_to_the_latents_size_by_their_top_left_pixels() -> None:
    method, maps = sdm_lora(), labels(3)
    layout = method.layout(maps, None)
    assert layout.shape == (3, CLASSES, 8, 8)
    assert torch.equal(layout.argmax(1), maps[:, ::4, ::4]) and bool((layout.sum(1) == 1).all())
    dropped = method.layout(maps, None, torch.tensor([True, False, True]))
    assert not dropped[1].any() and torch.equal(dropped[::2], layout[::2])


def test_instances_get_their_edges_where_the_dataset_has_edges() -> None:
    instances = torch.zeros(1, 32, 32, dtype=torch.int64)
    instances[:, :, 16:] = 7
    method = sdm_lora(place={"edges": True})
    layout = method.layout(labels(1), instances)
    assert layout.shape[1] == CLASSES + 1
    assert layout[0, -1].sum(0).tolist() == [0, 0, 0, 8, 8, 0, 0, 0]
    assert sdm_lora().layout(labels(1), instances).shape[1] == CLASSES


# Training


def test_nothing_of_the_base_is_trained_and_all_that_was_added_is() -> None:
    method = sdm_lora(latents=Latents(), steps=3, batch_size=4, learning_rate=0.01, ema=0.5)
    before = {k: v.clone() for k, v in method.network.state_dict().items()}
    learner = Learner(method.network, method.loss, method.fit_params, "cpu", ALONE, "t")
    for step in range(3):
        learner.step(step, train_batch(4, seed=step), lambda: ["image"])
    changed = {k for k, v in method.network.state_dict().items() if not torch.equal(v, before[k])}
    added = {k for k in before if ".lora_" in k or any(f".spade.{n}." in k for n in ("shared", "gamma", "beta"))}
    assert changed == added and len(added) > 40
    origin = method.context.uses["base"].network.state_dict()
    assert len(origin) == len(before) - len(added)
    plain = (k.replace(".base_layer.", ".").replace(".spade.norm.", ".") for k in before if k not in added)
    assert {name.removeprefix("unet.") for name in plain} == set(origin)


def test_the_loss_drops_whole_label_maps_in_the_last_stage_alone() -> None:
    def zeros(stage: int, **fit: Any) -> int:
        method, seen = sdm_lora(latents=Latents(), **fit), list[Tensor]()
        norm = method.network.spade_norms((8, 8))[0][0]
        norm.shared.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        method.loss(train_batch(64, stage=stage))
        return int((seen[0].flatten(1).abs().sum(1) == 0).sum())

    assert 4 < zeros(1) < 24
    assert zeros(1, finetune_steps=5) == 0 and 4 < zeros(2, finetune_steps=5) < 24
    assert zeros(1, drop_rate=0.0) == 0


def test_the_loss_is_the_error_of_the_noise_under_the_training_prompt() -> None:
    method = trained(latents=Latents(), flip=False, drop_rate=0.0)
    batch, drawn = train_batch(3), noise(3)
    latent, _ = Latents().of(batch.image_ids)
    t, eps = drawn.integers("t", 0, (), 1000), drawn.normal("eps", 0, (4, 8, 8))
    text = method.context.uses["text"].network.of("train", 3)
    with torch.no_grad():
        noisy = method.schedule.q_sample(latent, t, eps)
        wanted = (method.network(noisy, t, text, method.layout(batch.labels, None)) - eps).square().mean(dim=(1, 2, 3))
        assert torch.allclose(method.loss(batch), wanted, atol=1e-6)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    def gradients(wanted: bool) -> list[Tensor]:
        method = trained(latents=Latents())
        method.network.train().checkpointing = wanted
        assert method.network.checkpointing is wanted
        method.loss(train_batch(2)).mean().backward()
        return [p.grad for p in method.network.parameters() if p.requires_grad and p.grad is not None]

    plain, saved = gradients(False), gradients(True)
    assert len(plain) == len(saved) > 40
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(plain, saved, strict=True))
    assert isinstance(sdm_lora().fit_params, Recipe)


# Sampling


@pytest.mark.parametrize("null", ["label", "prompt", "both"])
def test_guidance_goes_away_from_what_the_other_branch_lacks(null: str) -> None:
    method = trained(sample={"guidance": 2.5, "null": null})
    (x, t, _), maps, text = inputs(), labels(2), method.context.uses["text"].network
    layout = method.layout(maps, None)
    with torch.no_grad():
        found = method.denoiser(maps)(x, t).eps
        conditional = method.network(x, t, text.of("positive", 2), layout)
        without = torch.zeros_like(layout) if null != "prompt" else layout
        other = method.network(x, t, text.of("positive" if null == "label" else "negative", 2), without)
    assert torch.allclose(found, other + 2.5 * (conditional - other), atol=1e-4)
    assert not torch.allclose(conditional, other, atol=1e-3)


def test_no_guidance_asks_once_and_memory_for_reuse_changes_no_bit() -> None:
    (x, t, _), maps = inputs(), labels(2)
    answers = []
    for memory in (2048, 0):
        method = trained(sample={"guidance": 1.0, "reuse_memory": memory})
        calls = list[int]()
        method.network.unet.register_forward_pre_hook(lambda _, given, calls=calls: calls.append(len(given[0])))
        with torch.no_grad():
            answers.append(method.denoiser(maps)(x, t).eps)
        assert calls == [2]
    assert torch.equal(*answers)


def test_images_are_sampled_with_weights_of_the_model_alone() -> None:
    method = trained(sample={"steps": 4})
    with torch.device("meta"):
        distant = of(LatentDiffusion, context(parts()), BASE)
    place = context({**method.context.uses, "base": distant})
    other = of(SDMLoRA, place, {"lora_rank": 2, "spade_hidden": 6}, {"steps": 4})
    other.network.load_state_dict(method.network.state_dict())
    other.network.eval()
    before, folded = {k: v.clone() for k, v in other.network.state_dict().items()}, list[bool]()
    unet = other.network.unet
    unet.register_forward_pre_hook(lambda net, _: folded.append(net.get_submodule(f"{PLACE}.to_q").merged))
    with torch.inference_mode():
        images = method.sample(map_batch(2), noise(2))
        assert torch.equal(other.sample(map_batch(2), noise(2)), images)
        assert not torch.equal(other.sample(map_batch(2, seed=5), noise(2)), images)
    assert images.dtype == torch.uint8 and images.shape == (2, 3, 32, 32)
    assert folded == [True] * 8
    assert all(torch.equal(v, before[k]) for k, v in other.network.state_dict().items())


def test_half_precision_is_close() -> None:
    (x, t, _), maps = inputs(), labels(2)
    with torch.inference_mode():
        wanted, found = (trained(sample={"dtype": dtype}).denoiser(maps)(x, t).eps for dtype in ("float32", "bfloat16"))
    assert found.dtype == torch.float32 and not torch.equal(found, wanted)
    assert float((found - wanted).square().mean()) < 0.01 * float(wanted.square().mean())
