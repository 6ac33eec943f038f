# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the Stable Diffusion family: names, whole and single files, folders, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sis.checkpoints import control_ldm, ldm_unet, ldm_vae
from sis.checkpoints.artefact import Target, import_model, inspect
from sis.checkpoints.ldm_pieces import Kind, pieces, written
from sis.checkpoints.ldm_shapes import shape_of
from sis.data.manifest import file_sha256
from sis.data.tensors import load_tensors
from sis.errors import SisError
from sis.nets.latent.controlled import ControlledUNet
from sis.nets.latent.kl import KLConfig, KLFirstStage
from sis.nets.latent.stable_diffusion import SDConfig, controlnet, unet

#: 32 groups are fixed in the authors' code, so this is as narrow as its networks can be.
SMALL = {
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "attention": [2],
    "heads": [2, 4],
    "cross_attention_dim": 6,
}
SMALL_VAE = {"block_out_channels": [32, 32, 64], "layers_per_block": 1, "latent_channels": 4}
HINTS = [4, 8, 8, 6]  # diffusers' own converter, an oracle below, knows four
SCHEDULE = {"betas": torch.zeros(3), "alphas_cumprod": torch.ones(3), "scale_factor": torch.tensor(0.2)}
Networks = tuple[ControlledUNet, KLFirstStage]


def random(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return network.eval()


def networks(changes: dict[str, Any] | None = None, vae: dict[str, Any] | None = None) -> Networks:
    config = SDConfig.model_validate(SMALL | (changes or {}))
    both = ControlledUNet(unet(config), controlnet(config, HINTS))
    first_stage = KLFirstStage(KLConfig.model_validate(SMALL_VAE | (vae or {})))
    random(both), random(first_stage)
    return both, first_stage


@pytest.fixture(scope="module")
def made() -> Networks:
    return networks()


def checkpoint(made: Networks) -> dict[str, Tensor]:
    """A whole ControlLDM checkpoint of the networks, with what lies beside them there."""
    both, first_stage = made
    parts: dict[Kind, nn.Module] = {"unet": both.unet, "controlnet": both.controlnet, "vae": first_stage.autoencoder}
    state = {name: value for kind, part in parts.items() for name, value in written(kind, part.state_dict()).items()}
    beside = {"cond_stage_model.transformer.x": torch.ones(2), "model_ema.decay": torch.ones(())}
    return {name: value.clone() for name, value in {**SCHEDULE, **state, **beside}.items()}


@pytest.fixture
def whole(made: Networks) -> dict[str, Tensor]:
    return checkpoint(made)


def same(found: dict[str, Tensor], network: nn.Module) -> bool:
    own = network.state_dict()
    return list(found) == list(own) and all(torch.equal(found[name], own[name]) for name in own)


SHAPES = [
    ({}, {}),
    ({"block_out_channels": [32, 64, 96], "heads": [2, 2, 2], "attention": [1, 2], "layers_per_block": 2}, {}),
    (
        {"linear_projection": False, "transformer_layers": 2, "attention": [1, 2], "in_channels": 5},
        {"layers_per_block": 2},
    ),
    (
        {"block_out_channels": [32], "heads": [1], "attention": [1]},
        {"latent_channels": 3, "block_out_channels": [32, 64]},
    ),
]


@pytest.mark.slow  # the oracle imports transformers
@pytest.mark.filterwarnings("ignore")  # of the oracle's own
@pytest.mark.parametrize(("changes", "vae"), SHAPES)
def test_names_are_those_that_diffusers_converters_know(changes: dict[str, Any], vae: dict[str, Any]) -> None:
    from diffusers.loaders import single_file_utils as oracle

    both, first_stage = networks(changes, vae)
    state = checkpoint((both, first_stage))
    pairs = [
        (oracle.convert_ldm_unet_checkpoint(dict(state), both.unet.config), both.unet),
        (oracle.convert_controlnet_checkpoint(dict(state), both.controlnet.config), both.controlnet),
        (oracle.convert_ldm_vae_checkpoint(dict(state), first_stage.autoencoder.config), first_stage.autoencoder),
    ]
    for theirs, network in pairs:
        own = network.state_dict()
        assert set(theirs) == set(own)
        assert all(torch.equal(theirs[name].reshape(own[name].shape), own[name]) for name in own)


@pytest.mark.parametrize(("changes", "vae"), SHAPES)
def test_shapes_are_read_from_weights_under_either_names(changes: dict[str, Any], vae: dict[str, Any]) -> None:
    both, first_stage = networks(changes, vae)
    told = SDConfig.model_validate(SMALL | changes).model_dump(exclude={"heads", "norm_groups", "prediction_type"})
    autoencoder = {"attention": [], "middle_attention": True} | SMALL_VAE | vae
    modern = both.state_dict() | {f"vae.{name}": value for name, value in first_stage.autoencoder.state_dict().items()}
    for state in (checkpoint((both, first_stage)), modern):
        found = pieces(state)
        assert shape_of(found["unet"]) == told
        del (copied := dict(told))["out_channels"]
        assert shape_of(found["controlnet"]) == copied | {"hint_channels": HINTS, "hint_inputs": 3}
        assert shape_of(found["vae"]) == autoencoder


@pytest.mark.parametrize(("changes", "vae"), SHAPES)
def test_one_file_fills_all_three_networks_and_is_written_back(changes: dict[str, Any], vae: dict[str, Any]) -> None:
    both, first_stage = networks(changes, vae)
    state, where = checkpoint((both, first_stage)), Path("control.ckpt")
    assert same(control_ldm.to_model(state, both, {}, where), both)
    assert same(ldm_unet.to_model(state, both.unet, {}, where), both.unet)
    assert same(ldm_vae.to_model(state, first_stage, {"scale": 0.18215}, where), first_stage)
    prefix = ("model.diffusion_model.", "control_model.")
    back = control_ldm.from_model(both.state_dict(), {}, where)
    assert set(back) == {name for name in state if name.startswith(prefix)}
    back |= ldm_vae.from_model(first_stage.state_dict(), {"norm_groups": 32}, where)
    assert all(torch.equal(value, state[name]) and value.shape == state[name].shape for name, value in back.items())


def test_files_without_prefixes_and_with_diffusers_names_are_read(made: Networks, whole: dict[str, Tensor]) -> None:
    both, first_stage = made
    own = dict(first_stage.autoencoder.state_dict())
    bare = {name.removeprefix("first_stage_model."): v for name, v in whole.items() if name.startswith("first_stage")}
    words = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {re.sub("|".join(words), lambda found: words[found[0]], name): value for name, value in own.items()}
    assert set(old) - set(own), "2023's names of attention differ"
    for state in (own, bare, {"loss.logvar": torch.zeros(1), **bare}, old):
        assert same(ldm_vae.to_model(state, first_stage, {"scale": 0.18215}, Path("x")), first_stage)
        assert ldm_vae.recognises(state) and not ldm_unet.recognises(state)
    bare = {name.removeprefix("model.diffusion_model."): v for name, v in whole.items() if name.startswith("model.d")}
    half = {name: value.half() for name, value in both.unet.state_dict().items()}
    assert same(ldm_unet.to_model(bare, both.unet, {}, Path("x")), both.unet)
    assert {v.dtype for v in ldm_unet.to_model(half, both.unet, {}, Path("x")).values()} == {torch.float32}


def target(method: str, fit: dict[str, Any] | None = None) -> Target:
    return Target(method, f"{method}-1", "scenes", fit or {}, 11)


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_a_files_format_is_the_one_of_the_runs_method(
    made: Networks, whole: dict[str, Tensor], tmp_path: Path, suffix: str
) -> None:
    both, first_stage = made
    file = tmp_path / f"control.{suffix}"
    if suffix == "ckpt":  # as Lightning writes one
        extra = {"epoch": 3, "global_step": 5, "optimizer_states": [{"state": {0: torch.zeros(1)}}], "callbacks": {}}
        torch.save({"state_dict": whole, **extra}, file)
    else:
        save_file({name: value.contiguous() for name, value in whole.items()}, file)
    cases: list[tuple[str, str, nn.Module]] = [
        ("scp_diff", "control_ldm", both),
        ("latent_diffusion", "ldm_unet", both.unet),
        ("autoencoder_kl", "ldm_vae", first_stage),
    ]
    for method, name, network in cases:
        manifest = import_model(file, "raw", network, target(method), tmp_path / method / "model.safetensors")
        assert manifest.meta["source"] == {"file": file.name, "sha256": file_sha256(file), "weights": "raw",
                                           "bytes": file.stat().st_size, "format": name}  # fmt: skip
        found, _ = load_tensors(tmp_path / method / "model.safetensors", "model")
        assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())
    facts = inspect(file)
    assert facts["format"] == "control_ldm, ldm_unet, ldm_vae" and facts["ControlNet"] == "names of its authors"
    assert facts["ControlNet fit"]["hint_channels"] == HINTS  # type: ignore[index]
    assert facts["autoencoder fit"]["block_out_channels"] == [32, 32, 64]  # type: ignore[index]
    with pytest.raises(SisError, match="a checkpoint of autoencoder_kl and latent_diffusion and scp_diff, the run"):
        import_model(file, "raw", both, target("sdm"), tmp_path / "model.safetensors")


def folder(made: Networks, root: Path, prediction: str = "epsilon") -> Path:
    """A folder of diffusers with the networks and a scheduler."""
    both, first_stage = made
    parts = {"unet": both.unet, "controlnet": both.controlnet, "vae": first_stage.autoencoder}
    for name, network in parts.items():
        network.save_pretrained(root / name)
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps({"prediction_type": prediction}))
    return root


def edited(path: Path, **options: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


def test_a_folder_of_diffusers_fills_the_same_networks(made: Networks, tmp_path: Path) -> None:
    both, first_stage = made
    base, out = folder(made, tmp_path / "base"), tmp_path / "model.safetensors"
    cases: list[tuple[str, nn.Module, Path, list[str]]] = [
        ("scp_diff", both, base, ["controlnet", "unet"]),
        ("latent_diffusion", both.unet, base, ["unet"]),
        ("latent_diffusion", both.unet, base / "unet", [""]),
        ("autoencoder_kl", first_stage, base, ["vae"]),
    ]
    for method, network, place, parts in cases:
        source = import_model(place, "ema", network, target(method), out).meta["source"]
        found, _ = load_tensors(out, "model")
        assert all(torch.equal(found[key], value) for key, value in network.state_dict().items())
        files = {f"{part}/diffusion_pytorch_model.safetensors".lstrip("/") for part in parts}
        assert source["files"] == {name: file_sha256(place / name) for name in files}
        assert source["file"] == place.name and source["bytes"] == sum((place / n).stat().st_size for n in files)
    assert inspect(base)["format"] == "control_ldm, ldm_unet, ldm_vae"
    assert inspect(base / "vae")["autoencoder"] == "names of diffusers"
    with pytest.raises(SisError, match="a folder, and this method's checkpoints are files"):
        import_model(base, "ema", both, target("sdm"), out)
    with pytest.raises(SisError, match="the folder holds no unet"):
        import_model(base / "vae", "ema", both.unet, target("latent_diffusion"), out)


def test_a_network_in_several_files_is_read_whole_or_not_at_all(made: Networks, tmp_path: Path) -> None:
    both, place = made[0], folder(made, tmp_path / "base") / "unet"
    whole = place / "diffusion_pytorch_model.safetensors"
    shutil.copy(whole, place / "diffusion_pytorch_model.fp16.safetensors")  # left alone beside the whole precision
    run = (both.unet, target("latent_diffusion"), tmp_path / "model.safetensors")
    assert list(import_model(place, "ema", *run).meta["source"]["files"]) == [whole.name]
    weights = list(both.unet.state_dict().items())
    parts = [place / f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    save_file(dict(weights[:20]), parts[0])
    save_file(dict(weights[20:]), parts[1])
    whole.unlink()
    (place / "diffusion_pytorch_model.fp16.safetensors").unlink()
    assert set(import_model(place, "ema", *run).meta["source"]["files"]) == {part.name for part in parts}
    parts[0].unlink()
    with pytest.raises(SisError, match="1 parts of a file of 2"):
        import_model(place, "ema", *run)
    parts[1].unlink()
    with pytest.raises(SisError, match=r"no \*\.safetensors beside config\.json .* - fetch diffusion_pytorch_model"):
        import_model(place, "ema", *run)


Spoil = Callable[[Path], None]


@pytest.mark.parametrize(
    ("method", "spoil", "message"),
    [
        (
            "latent_diffusion",
            lambda base: edited(base / "scheduler" / "scheduler_config.json", prediction_type="v_prediction"),
            "the folder says prediction_type v_prediction, .* - take the base for 512 pixels",
        ),
        (
            "scp_diff",
            lambda base: (shutil.rmtree(base / "scheduler"), edited(base / "unet" / "config.json", sample_size=96))[1],
            "the folder says prediction_type v_prediction",
        ),
        (
            "latent_diffusion",
            lambda base: edited(base / "unet" / "config.json", attention_head_dim=[2, 8]),
            r"the folder's U-Net has heads \[2, 8\] \(the run: \[2, 4\]\)",
        ),
        (
            "latent_diffusion",
            lambda base: edited(base / "unet" / "config.json", class_embed_type="timestep"),
            "no U-Net of the Stable Diffusion 1 and 2 family: class_embed_type",
        ),
        ("latent_diffusion", lambda base: (base / "unet" / "config.json").write_text("{"), "not a readable JSON file"),
        (
            "autoencoder_kl",
            lambda base: edited(base / "vae" / "config.json", scaling_factor=0.13025),
            r"the folder's latents are scaled by 0\.13025, the run's by 0\.18215",
        ),
        (
            "autoencoder_kl",
            lambda base: edited(base / "vae" / "config.json", norm_num_groups=16),
            r"the folder's autoencoder has norm_groups 16 \(the run: 32\)",
        ),
        ("autoencoder_kl", lambda base: edited(base / "vae" / "config.json", shift_factor=0.1), "have shift_factor"),
    ],
)
def test_a_folder_that_says_something_else_is_refused_in_one_line(
    made: Networks, tmp_path: Path, method: str, spoil: Spoil, message: str
) -> None:
    base, (both, first_stage) = folder(made, tmp_path / "base"), made
    spoil(base)
    network = {"scp_diff": both, "latent_diffusion": both.unet, "autoencoder_kl": first_stage}[method]
    with pytest.raises(SisError, match=message) as caught:
        import_model(base, "ema", network, target(method), tmp_path / "model.safetensors")
    assert "\n" not in str(caught.value) and not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"cross_attention_dim": 8},
            r"U-Net has cross_attention_dim 6 \(the run: 8\).* - SD 1 has 768 and SD 2 has 1024",
        ),
        ({"in_channels": 9}, r"in_channels 4 \(the run: 9\).* 9 is a base for inpainting"),
        ({"linear_projection": False}, r"linear_projection true \(the run: false\)"),
        (
            {"block_out_channels": [32, 32], "layers_per_block": 2},
            r"block_out_channels \[32, 64\] .*, layers_per_block 1",
        ),
        ({"attention": [1, 2]}, r"attention \[2\] \(the run: \[1, 2\]\)"),
        ({"norm_groups": 16}, "norm_groups: 16, the authors' code has 32"),
    ],
)
def test_weights_of_another_shape_are_refused(whole: dict[str, Tensor], changes: dict[str, Any], message: str) -> None:
    config = SDConfig.model_validate(SMALL | changes)
    with torch.device("meta"):
        network = unet(config)
    with pytest.raises(SisError, match=message):
        ldm_unet.to_model(whole, network, {}, Path("control.ckpt"))


def test_missing_and_foreign_weights_are_named(made: Networks, whole: dict[str, Tensor]) -> None:
    both, name = made[0], "control_model.zero_convs.1.0.weight"
    where = Path("control.ckpt")
    with pytest.raises(SisError, match=f"1 unexpected: {re.escape('control_model.zero_convs.9.0.bias')}"):
        control_ldm.to_model({**whole, "control_model.zero_convs.9.0.bias": torch.ones(1)}, both, {}, where)
    with pytest.raises(SisError, match=r"1 unexpected weights: adapter\.x \[control\.ckpt\]"):
        control_ldm.to_model({**whole, "adapter.x": torch.ones(1)}, both, {}, where)
    lacking = {key: value for key, value in whole.items() if key != name}
    for read in (lambda: control_ldm.to_model(lacking, both, {}, where), lambda: control_ldm.describe(lacking)):
        with pytest.raises(SisError, match=f"1 missing: {re.escape(name)}"):
            read()
    alone = {key: value for key, value in whole.items() if key.startswith("model.")}
    assert not control_ldm.recognises(alone) and ldm_unet.recognises(alone)
    with pytest.raises(SisError, match="the file holds no ControlNet"):
        control_ldm.to_model(alone, both, {}, where)


def test_what_the_weights_cannot_fill_or_say_is_refused(made: Networks, whole: dict[str, Tensor]) -> None:
    both, first_stage = made
    where = Path("control.ckpt")
    with pytest.raises(SisError, match=r"the card says prediction_type v_prediction.*SD 2\.1-base"):
        ldm_unet.to_model(whole, both.unet, {"prediction_type": "v_prediction"}, where)
    with pytest.raises(SisError, match="scale: auto is measured in training"):
        ldm_vae.to_model(whole, first_stage, {"scale": "auto"}, where)
    wider = nn.ModuleDict({"unet": both.unet, "head": nn.Linear(1, 1)})
    with pytest.raises(SisError, match=r"has weights that such files do not: head\.weight, head\.bias"):
        ldm_unet.to_model(whole, wider, {}, where)
    with pytest.raises(SisError, match="has 0 modules that could be the autoencoder"):
        ldm_vae.to_model(whole, both, {}, where)


def test_models_that_the_authors_code_cannot_hold_are_not_written(made: Networks) -> None:
    both, first_stage = made
    where = Path("model.safetensors")
    with pytest.raises(SisError, match="norm_groups: 16, the authors' code has 32"):
        ldm_vae.from_model(first_stage.state_dict(), {"norm_groups": 16}, where)
    with pytest.raises(SisError, match="no such weights: measured_scale"):
        ldm_vae.from_model({**first_stage.state_dict(), "measured_scale": torch.ones(())}, {}, where)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.default.weight"
    with pytest.raises(SisError, match=r"1 unexpected: .*lora_A"):
        control_ldm.from_model({**both.state_dict(), name: torch.ones(2, 2)}, {}, where)


@pytest.mark.parametrize("name", ["stabilityai/stable-diffusion-2-1-base", "org/Some_Model.v2"])
def test_a_name_on_a_hub_is_refused_and_nothing_is_fetched(
    made: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import socket

    def forbidden(*_: object) -> None:
        raise AssertionError("the network was tried")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SisError, match=rf"called {name}, and nothing is downloaded .* - fetch unet/, vae/ and scheduler"
    ):
        import_model(Path(name), "ema", made[0].unet, target("latent_diffusion"), tmp_path / "m.safetensors")
    with pytest.raises(SisError, match="no such file"):
        import_model(
            Path("weights/x.ckpt"), "ema", made[0].unet, target("latent_diffusion"), tmp_path / "m.safetensors"
        )
