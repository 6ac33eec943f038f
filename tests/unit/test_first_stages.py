# SPDX-License-Identifier: Apache-2.0
"""First stages: latents and images, scales, losses, and the importer of VQ autoencoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_jittor_files import jittor_file
from torch import Tensor

from sis.checkpoints import vqgan
from sis.checkpoints.artefact import Target, export_model, import_model, inspect
from sis.data.manifest import read_manifest
from sis.data.pairs import PairSet
from sis.data.tensors import load_tensors
from sis.data.training_data import TrainingData
from sis.data.weight_files import read_weights, write_weights
from sis.errors import SisError
from sis.methods.build import build_method, load_weights
from sis.nets.latent.first_stage import FirstStage, network_input, reconstruction_error, unit_scale
from sis.nets.latent.kl import KLConfig, KLFirstStage, divergence
from sis.nets.latent.vq import VQConfig, VQFirstStage, codebook_error
from sis.plan import RunSpec
from sis.sampling.python_method import batch_maker
from sis.training.train import train_model

TINY: dict[str, Any] = {"block_out_channels": [8, 8, 16], "layers_per_block": 1, "norm_groups": 4}
STAGES = {
    "kl": lambda **fit: KLFirstStage(KLConfig(**{**TINY, **fit})),
    "vq": lambda **fit: VQFirstStage(VQConfig(**{**TINY, "codes": 64, "codebook_range": 1.0, **fit})),
}


def stage(kind: str, **fit: Any) -> FirstStage:
    torch.manual_seed(0)
    return STAGES[kind](**fit).eval()


def images(count: int = 2, height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("kind", ["kl", "vq"])
@pytest.mark.parametrize(
    ("fit", "factor"),
    [
        ({}, 4),
        ({"patch": 2}, 8),
        ({"block_out_channels": [8]}, 1),
        ({"block_out_channels": [8], "patch": 4, "latent_channels": 5}, 4),
        ({"attention": [2, 4], "middle_attention": False}, 4),
    ],
)
def test_latents_are_smaller_by_the_factor_and_decode_to_the_size_of_the_image(
    kind: str, fit: dict[str, Any], factor: int
) -> None:
    network = stage(kind, **fit)
    with torch.inference_mode():
        mean, deviation = network.moments(images())
        assert network.factor == factor and network.channels == fit.get("latent_channels", {"kl": 4, "vq": 3}[kind])
        assert mean.shape == deviation.shape == (2, network.channels, 16 // factor, 24 // factor)
        assert network.decode(mean).shape == (2, 3, 16, 24)
    assert (deviation > 0).all() if kind == "kl" else not deviation.any()


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_the_scale_multiplies_latents_and_is_undone_before_decoding(kind: str) -> None:
    plain, scaled = stage(kind, scale=1.0), stage(kind, scale=0.25)
    with torch.inference_mode():
        for one, other in zip(plain.moments(images()), scaled.moments(images()), strict=True):
            torch.testing.assert_close(other, one * 0.25)
        mean, _ = plain.moments(images())
        torch.testing.assert_close(scaled.decode(mean * 0.25), plain.decode(mean))
    assert plain.state_dict().keys() == scaled.state_dict().keys(), "a given scale is no weight"


def test_the_published_first_stages_have_their_sizes_and_scales() -> None:
    with torch.device("meta"):
        kl, vq = KLFirstStage(KLConfig()), VQFirstStage(VQConfig())
    assert (kl.factor, kl.channels, kl.scale) == (8, 4, 0.18215)
    assert (vq.factor, vq.channels, vq.scale) == (4, 3, 1.0)
    assert sum(p.numel() for p in kl.parameters()) == 83_653_863  # Stable Diffusion's autoencoder
    assert sum(p.numel() for p in vq.parameters()) == 55_322_782  # IIDM's


def test_the_posterior_is_diffusers_own() -> None:
    network = stage("kl", scale=1.0)
    assert isinstance(network, KLFirstStage)
    with torch.inference_mode():
        (theirs,) = network.autoencoder.encode(images(), return_dict=False)
        mean, deviation = network.moments(images())
    torch.testing.assert_close(mean, theirs.mean)
    torch.testing.assert_close(deviation, theirs.std)
    drawn = network.posterior(images())
    torch.testing.assert_close(divergence(*drawn), theirs.kl(), rtol=1e-4, atol=1e-4)


def test_quantisation_takes_the_nearest_code_and_is_part_of_decoding() -> None:
    network = stage("vq")
    assert isinstance(network, VQFirstStage)
    latents = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        codes, indices = network.quantise(latents)
        table = network.codebook.double().numpy()
        vectors = latents.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
        nearest = ((vectors[:, None] - table) ** 2).sum(-1).argmin(1)
        np.testing.assert_array_equal(indices.flatten().numpy(), nearest)
        np.testing.assert_array_equal(codes.permute(0, 2, 3, 1).reshape(-1, 3).double().numpy(), table[nearest])
        torch.testing.assert_close(network.decode(latents), network.decode_codes(codes))
        assert not torch.allclose(network.decode_codes(latents), network.decode_codes(codes))


def test_the_encoder_learns_through_the_quantisation_and_codes_from_their_error_alone() -> None:
    network = stage("vq")
    decoded, latents, codes = network(images())
    reconstruction_error(images(), decoded).sum().backward(retain_graph=True)
    assert isinstance(network, VQFirstStage) and network.codebook.grad is None
    first = network.autoencoder.encoder.conv_in.weight.grad
    assert first is not None and first.abs().sum() > 0
    codebook_error(latents, codes, 0.25).sum().backward()
    assert network.codebook.grad is not None and network.codebook.grad.abs().sum() > 0


def test_the_codebooks_error_is_of_each_image_and_weighs_the_commitment() -> None:
    z, e = torch.zeros(2, 1, 1, 2, requires_grad=True), torch.tensor([[1.0, 3.0], [2.0, 2.0]]).view(2, 1, 1, 2)
    e.requires_grad_()
    error = codebook_error(z, e, 0.5)
    torch.testing.assert_close(error, torch.tensor([5.0, 4.0]) * 1.5)
    error.sum().backward()
    assert z.grad is not None and e.grad is not None
    torch.testing.assert_close(e.grad, e.detach())
    torch.testing.assert_close(z.grad, -0.5 * e.detach())


@pytest.mark.parametrize(
    ("fit", "words"),
    [
        ({"norm_groups": 3}, r"3 groups do not divide the channels \[8, 8, 16\]"),
        ({"attention": [8]}, r"attention at \[8\], the levels have the factors \[1, 2, 4\]"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(fit: dict[str, Any], words: str) -> None:
    with pytest.raises(SisError, match=words):
        stage("kl", **fit)


def test_sides_that_do_not_divide_are_refused_by_network_and_method(tiny_spec: Callable[..., RunSpec]) -> None:
    with pytest.raises(SisError, match="factor 4 cannot encode images of 24x18"):
        stage("kl").moments(images(height=18))
    fit = {**TINY, "block_out_channels": [8] * 7}
    with pytest.raises(SisError, match="factor 64 cannot encode images of 32x32"):
        build_method(tiny_spec("autoencoder_kl", fit=fit), "cpu", None, None)


def test_the_measured_scale_gives_latents_unit_variance(tiny_pairs: Path, tmp_path: Path) -> None:
    data = TrainingData.open(PairSet.open(tiny_pairs / "train"), tmp_path)
    network = stage("kl", scale=1.0)
    scale = unit_scale(network, data, "cpu")
    photographs = np.concatenate([batch.images for batch in data.in_order()])
    with torch.inference_mode():
        mean, deviation = network.moments(network_input(photographs, "cpu"))
    drawn = mean + deviation * torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    assert float((drawn * scale).std()) == pytest.approx(1, abs=0.02)
    assert float((mean.double() ** 2 + deviation.double() ** 2).mean() - mean.double().mean() ** 2) ** -0.5 == (
        pytest.approx(scale, rel=1e-6)
    )


def trained(method: str, tiny_pairs: Path, spec: RunSpec, folder: Path) -> tuple[Path, Any]:
    """A trained model, and the method with its weights and the photographs of the val split."""
    path = folder / "model.safetensors"
    train_model(spec, tiny_pairs / "train", path, "cpu")
    built = build_method(spec, "cpu", PairSet.open(tiny_pairs / "val"), None)
    load_weights(built, path)
    return path, built


@pytest.mark.slow
@pytest.mark.parametrize("method", ["autoencoder_kl", "autoencoder_vq"])
def test_a_short_training_reconstructs_better_than_none_and_measures_its_scale(
    tiny_pairs: Path, tiny_spec: Callable[..., RunSpec], tmp_path: Path, method: str
) -> None:
    example = tiny_spec(method).fit
    spec = tiny_spec(method, fit={**example, "steps": 60, "learning_rate": 0.005, "scale": "auto", "keep_raw": True})
    path, built = trained(method, tiny_pairs, spec, tmp_path)
    val = PairSet.open(tiny_pairs / "val")
    real = np.stack([pair.image for pair in val]).astype(float)

    def error(method: Any) -> float:
        shown = batch_maker(method, val, len(val), 0, "cpu")([(i, 0) for i in val.ids])
        return float(np.abs(np.asarray(shown).astype(float) - real).mean())

    assert error(built) < 0.7 * error(build_method(spec, "cpu", val, None))
    data = TrainingData.open(PairSet.open(tiny_pairs / "train"), tmp_path)
    measured, raw = built.network.scale, load_tensors(path.with_name("model-raw.safetensors"), "model")[0]
    own = built.network.encode(network_input(data.batch(range(len(data))).images, "cpu"))
    assert (own[0].double() ** 2 + own[1].double() ** 2).mean().item() - own[0].double().mean().item() ** 2 == (
        pytest.approx(measured**-2, rel=1e-5)
    )
    assert raw["measured_scale"] != 1 and raw["measured_scale"] != measured
    assert read_manifest(path, "model").meta["fit"]["scale"] == "auto"


# The importer. Weights are random: what the authors' names mean, the golden case vq_autoencoder tells.

THEIRS: dict[str, Any] = {"block_out_channels": [32, 64], "layers_per_block": 1, "attention": [2], "codes": 16,
                          "latent_channels": 2, "hidden_channels": 5}  # fmt: skip


@pytest.fixture(scope="module")
def network() -> VQFirstStage:
    torch.manual_seed(0)
    return VQFirstStage(VQConfig(**THEIRS))


@pytest.fixture
def theirs(network: VQFirstStage) -> dict[str, Tensor]:
    return vqgan.export_vq(network.autoencoder.state_dict())


FIT = VQConfig(**THEIRS).model_dump()


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_vq_autoencoder_comes_in_alone_or_out_of_a_whole_checkpoint(
    network: VQFirstStage, theirs: dict[str, Tensor], tmp_path: Path, prefix: str
) -> None:
    beside = {"loss.discriminator.main.0.weight": torch.zeros(2), "model.other.weight": torch.zeros(2)}
    state = {prefix + name: value for name, value in theirs.items()} | (
        beside if prefix else dict([*beside.items()][:1])
    )
    assert vqgan.recognises(state)
    found = vqgan.to_model(state, network, FIT, tmp_path)
    assert {name: value.tolist() for name, value in found.items()} == {
        name: value.tolist() for name, value in network.state_dict().items()
    }
    back = vqgan.from_model(found, FIT, tmp_path)
    assert back.keys() == theirs.keys() and all(torch.equal(back[name], theirs[name]) for name in theirs)


def test_a_jittor_file_becomes_a_model_of_ours_and_a_file_of_theirs_again(
    network: VQFirstStage, theirs: dict[str, Tensor], tmp_path: Path
) -> None:
    arrays = {name: value.numpy() for name, value in theirs.items()}
    source = jittor_file(arrays, tmp_path / "vq.pkl")
    with torch.device("meta"):
        empty = VQFirstStage(VQConfig(**THEIRS))
    model, target = tmp_path / "model.safetensors", Target("autoencoder_vq", "id", "scenes_tiny", FIT, 4)
    import_model(source, "not stated", empty, target, model)
    tensors, facts = load_tensors(model, "model")
    assert facts["source"]["format"] == "vqgan" and facts["source"]["file"] == "vq.pkl"
    assert all(torch.equal(tensors[name], value) for name, value in network.state_dict().items())
    export_model(model, "vqgan", tmp_path / "back.pt")
    back = read_weights(tmp_path / "back.pt").tensors
    assert back.keys() == theirs.keys() and all(torch.equal(back[name], theirs[name]) for name in theirs)


def test_inspection_tells_the_fit_of_a_file(theirs: dict[str, Tensor], tmp_path: Path) -> None:
    write_weights(theirs, tmp_path / "vq.pt")
    facts = inspect(tmp_path / "vq.pt")
    assert facts["format"] == "vqgan" and facts["fit"] == THEIRS
    assert facts["image size"] == "both sides divisible by 2"


def test_weights_that_do_not_fit_are_refused(network: VQFirstStage, theirs: dict[str, Tensor], tmp_path: Path) -> None:
    less = {name: value for name, value in theirs.items() if name != "quant_conv.bias"}
    with pytest.raises(SisError, match=r"1 missing: quant_conv\.bias"):
        vqgan.to_model(less, network, FIT, tmp_path)
    with pytest.raises(SisError, match=r"1 missing: quant_conv\.bias"):
        vqgan.describe(less)
    for other in ({"scale": "auto"}, {"patch": 2}, {"norm_groups": 8}):
        with pytest.raises(SisError, match=f"no autoencoder with {next(iter(other))}"):
            vqgan.to_model(theirs, network, {**FIT, **other}, tmp_path)
    assert not vqgan.recognises({name: v for name, v in theirs.items() if not name.startswith("quantize")})
