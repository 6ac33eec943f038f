# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of others: every weight arrives under its name or the file is refused in one line, and nothing is run."""

from __future__ import annotations

import json
import pickle
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sis.checkpoints import sdm, weight_files
from sis.checkpoints.artefact import Target, export_model, formats, import_model, inspect
from sis.checkpoints.sdm import config_of, export_sdm, import_sdm, network_of
from sis.checkpoints.weight_files import read_weights, write_weights
from sis.cli import main
from sis.data.image_set import pixel_hashes
from sis.data.manifest import file_sha256, read_manifest
from sis.data.tensors import load_tensors
from sis.errors import SisError
from sis.methods.build import build_method
from sis.nets.patches import PatchedUNet
from sis.nets.sdm_unet import SDMUNet, UNetConfig
from sis.plan import RunSpec
from sis.sampling.run import SampleJob, sample_run

CASES = Path(__file__).parents[1] / "golden" / "cases" / "sdm"
FULL = {"keys_full_ade20k": 151, "keys_full_celeba": 20}
#: A network that the authors' code could have, and that is small: 32 groups and 128 hidden channels are fixed there.
SMALL = {"width": 32, "multipliers": [1, 2], "blocks": 1, "attention": [2]}
LABELS = 11  # of scenes, void included


def filled(network: SDMUNet) -> SDMUNet:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    return network


def small(labels: int = LABELS, **changes: Any) -> SDMUNet:
    return filled(SDMUNet(UNetConfig.model_validate(SMALL | changes), 3, labels))


@pytest.fixture
def theirs() -> dict[str, Tensor]:
    """A checkpoint of the authors for `small()`."""
    return export_sdm(small().state_dict())


# Names


@pytest.mark.parametrize("case", FULL)
def test_every_key_and_shape_of_a_full_size_checkpoint_has_its_place_and_finds_back(case: str) -> None:
    keys = json.loads((CASES / case / "case.json").read_text())["keys"]
    with torch.device("meta"):
        state = {key: torch.empty(shape) for key, shape in keys.items()}
        network = SDMUNet(UNetConfig(), 3, FULL[case])
    ours = import_sdm(state, network)
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in network.state_dict().items()}
    assert [(k, list(v.shape)) for k, v in export_sdm(ours).items()] == list(keys.items()), "and in their order"
    assert config_of(state) == UNetConfig(), "the shapes speak of the published network"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"learn_sigma": False},
        {"multipliers": [1], "attention": []},
        {"multipliers": [2, 1, 2], "blocks": 2, "attention": [1, 4]},
        {"blocks": 3, "attention": [], "spade_hidden": 8},
    ],
)
def test_weights_survive_the_way_out_and_back_bit_for_bit(changes: dict[str, Any]) -> None:
    network = small(**changes)
    exported = export_sdm(network.state_dict())
    assert len(exported) == len(network.state_dict())
    assert config_of(exported) == network.config
    back = import_sdm(exported)
    assert list(back) == list(network.state_dict())
    assert all(torch.equal(back[k], v) and back[k].dtype == v.dtype for k, v in network.state_dict().items())


def test_the_attention_of_the_authors_is_one_dimensional(theirs: dict[str, Tensor]) -> None:
    lines = [k for k, v in theirs.items() if k.endswith(("qkv.weight", "proj_out.weight")) and v.ndim == 3]
    assert len(lines) == 8 and theirs["middle_block.1.qkv.weight"].shape == (192, 64, 1)


def test_half_precision_weights_are_widened_without_loss(theirs: dict[str, Tensor]) -> None:
    half = {k: v.half() for k, v in theirs.items()}
    ours = import_sdm(half)
    assert {v.dtype for v in ours.values()} == {torch.float32}
    assert all(torch.equal(v, half[k]) for k, v in export_sdm(ours).items())


def test_a_name_that_no_network_has_is_not_exported() -> None:
    with pytest.raises(SisError, match=r"no weight of an SDM network: unet\.stem\.weight"):
        export_sdm({"unet.stem.weight": torch.zeros(1)})


# What does not fit


def test_the_label_width_is_compared_before_anything_else(theirs: dict[str, Tensor]) -> None:
    del theirs["out.2.bias"], theirs["input_blocks.0.0.bias"]
    words = "the checkpoint was trained on 11 label channels, this dataset has 36"
    with pytest.raises(SisError, match=words) as caught:
        import_sdm(theirs, small(36), Path("model.pt"))
    assert "missing" not in str(caught.value) and "[model.pt]" in str(caught.value)


def test_differences_are_listed_by_kind_with_five_names_and_a_count(theirs: dict[str, Tensor]) -> None:
    state = dict(theirs)
    gone = [k for k in state if k.startswith("input_blocks.1.")]
    for key in gone:
        del state[key]
    state |= {"module.x": torch.zeros(1), "out.2.bias": torch.zeros(7)}
    with pytest.raises(SisError) as caught:
        import_sdm(state, small())
    message = str(caught.value)
    assert "\n" not in message
    assert f"{len(gone)} missing: {', '.join(gone[:5])} and {len(gone) - 5} more" in message
    assert "1 unexpected: module.x" in message
    assert "1 of another shape: out.2.bias is (7,) and should be (6,)" in message


@pytest.mark.parametrize("changes", [{"width": 64}, {"blocks": 2}, {"multipliers": [1, 2, 2]}, {"learn_sigma": False}])
def test_a_checkpoint_of_another_network_is_refused(theirs: dict[str, Tensor], changes: dict[str, Any]) -> None:
    with pytest.raises(SisError, match=r"does not fit the network; \d+ "):
        import_sdm(theirs, small(**changes))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("time_embed.0.weight", torch.zeros(())),
        ("time_embed.0.weight", torch.zeros(4, 0)),
        ("out.2.weight", torch.zeros(3)),
        ("middle_block.0.in_norm.mlp_shared.0.weight", None),
        ("output_blocks.1.0.out_layers.2.weight", None),
        ("output_blocks.1.0.out_layers.2.weight", torch.zeros(1, 1, 3, 3)),
        ("output_blocks.99999999999.0.x", torch.zeros(1)),
    ],
)
def test_shapes_that_speak_of_no_network_are_refused_in_one_line(
    theirs: dict[str, Tensor], key: str, value: Tensor | None
) -> None:
    state = {k: v for k, v in theirs.items() if k != key} | ({} if value is None else {key: value})
    with pytest.raises(SisError) as caught:
        import_sdm(state)
    assert "\n" not in str(caught.value)


# Files


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return (open, (str(self.sentinel), "w"))


def test_a_state_dict_is_read_and_written_whole(theirs: dict[str, Tensor], tmp_path: Path) -> None:
    write_weights(theirs, tmp_path / "a.pt")
    found = read_weights(tmp_path / "a.pt")
    assert list(found.tensors) == list(theirs) and all(torch.equal(found.tensors[k], theirs[k]) for k in theirs)
    assert (found.sha256, found.bytes) == (file_sha256(tmp_path / "a.pt"), (tmp_path / "a.pt").stat().st_size)
    write_weights(theirs, tmp_path / "b" / "a.pt")
    assert (tmp_path / "b" / "a.pt").read_bytes() == (tmp_path / "a.pt").read_bytes(), "the same bytes every time"
    assert type(torch.load(tmp_path / "a.pt", weights_only=True)) is dict


def test_a_view_is_written_without_the_storage_behind_it(tmp_path: Path) -> None:
    write_weights({"a": torch.zeros(1_000_000)[:2]}, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 10_000


def test_a_disk_that_fills_up_leaves_no_half_written_file(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(SisError, match=r"could not be written|full|large"):
            write_weights({"a": torch.zeros(100_000)}, tmp_path / "a.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_the_formats_of_old_torch_and_of_safetensors_are_read_too(theirs: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(theirs, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file({k: v.contiguous() for k, v in theirs.items()}, tmp_path / "new.safetensors")
    for name in ("old.pt", "new.safetensors"):
        found = read_weights(tmp_path / name).tensors
        assert all(torch.equal(found[k], theirs[k]) for k in theirs)


@pytest.mark.parametrize("way", ["zip", "old", "bare"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, way: str) -> None:
    sentinel, path = tmp_path / "was run", tmp_path / "trap.pt"
    content = {"time_embed.0.weight": torch.zeros(2, 2), "x": Trap(sentinel)}
    if way == "bare":
        path.write_bytes(pickle.dumps(content["x"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=way == "zip")
    with pytest.raises(SisError, match="nothing in it was run") as caught:
        read_weights(path)
    assert not sentinel.exists() and "\n" not in str(caught.value) and "weights_only=False" not in str(caught.value)
    if way != "bare":
        torch.load(path, weights_only=False)["x"].close()
        assert sentinel.exists(), "the trap works"


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.95, 0.999])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_truncated_file_is_refused_in_one_line(
    theirs: dict[str, Tensor], tmp_path: Path, suffix: str, share: float
) -> None:
    path = tmp_path / f"cut.{suffix}"
    if suffix == "pt":
        write_weights(theirs, path)
    else:
        save_file({k: v.contiguous() for k, v in theirs.items()}, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(SisError, match="damaged") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("data", [b"\x80", b"PK\x03\x04", b"hello world", b"\x00" * 1000, b"\x80\x02]q\x00."])
def test_a_file_of_something_else_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(SisError, match=r"damaged|holds") as caught:
        read_weights(tmp_path / "x.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(1)], "holds a list, not named weights"),
        (torch.zeros(1), "holds a Tensor, not named weights"),
        ({}, "holds no weights"),
        (
            {"model": {"a": torch.zeros(1)}, "step": 3},
            "holds more than named weights: model, step .* - save the state dict",
        ),
        ({1: torch.zeros(1)}, "more than named weights: 1"),
        ({"a": torch.tensor([1.0, float("nan")]), "b": torch.zeros(1)}, "weights are not finite: a "),
    ],
)
def test_anything_but_finite_weights_under_names_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(SisError, match=message):
        read_weights(tmp_path / "x.pt")


def test_a_small_file_that_claims_to_hold_huge_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(2**40)}, tmp_path / "x.pt")
    with pytest.raises(SisError, match="weights larger than their file: a "):
        read_weights(tmp_path / "x.pt")


def test_a_file_that_is_not_there_and_a_torch_that_is_too_old_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SisError, match="no such file"):
        read_weights(tmp_path / "x.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.pt")
    monkeypatch.setattr(weight_files.torch, "__version__", "2.9.1+cpu")
    with pytest.raises(SisError, match=r"torch 2\.9\.1\+cpu does not read foreign files safely - install torch 2\.10"):
        read_weights(tmp_path / "x.pt")


# Models


@pytest.fixture
def spec(tiny_spec: Callable[..., RunSpec]) -> RunSpec:
    return tiny_spec("sdm", fit=SMALL | {"diffusion_steps": 50}, sample={"steps": 2}, samples_per_map=1)


def target_of(spec: RunSpec) -> tuple[PatchedUNet, Target]:
    with torch.device("meta"):
        method = build_method(spec, "meta", None, None)
    facts = Target("sdm", spec.model_id, spec.dataset.name, method.fit_params.model_dump(), method.context.labels.width)
    return method.network, facts


def test_every_format_of_the_package_is_found_by_its_stem() -> None:
    assert list(formats()) == ["sdm"] and formats()["sdm"].METHOD == "sdm"


def test_an_imported_checkpoint_is_a_model_that_sampling_accepts_and_that_exports_back(
    spec: RunSpec, theirs: dict[str, Tensor], tiny_pairs: Path, tmp_path: Path
) -> None:
    file, model = tmp_path / "ema_0.9999_best.pt", tmp_path / "model.safetensors"
    write_weights(theirs, file)
    manifest = import_model(file, "raw", *target_of(spec), model)
    assert manifest.meta["source"] == {
        "file": file.name, "sha256": file_sha256(file), "bytes": file.stat().st_size, "format": "sdm", "weights": "raw",
    }  # fmt: skip
    assert manifest.meta["model_id"] == spec.model_id and manifest.meta["label_width"] == LABELS
    assert manifest.meta["parameters"] == sum(v.numel() for v in theirs.values())
    assert manifest.meta["fit"]["width"] == 32 and manifest.meta["dataset"] == "scenes_tiny"
    images = sample_run(SampleJob(spec, tiny_pairs / "val", tmp_path / "images", model))
    assert images is not None and len(set(pixel_hashes(tmp_path / "images").values())) == 16
    digest = export_model(model, "sdm", tmp_path / "back.pt")
    assert digest == file_sha256(file) == file_sha256(tmp_path / "back.pt"), "bit for bit the file that came"


def test_an_imported_model_carries_the_facts_of_a_trained_one(
    spec: RunSpec, theirs: dict[str, Tensor], tiny_model: Path, tmp_path: Path
) -> None:
    write_weights(theirs, tmp_path / "a.pt")
    manifest = import_model(tmp_path / "a.pt", "ema", *target_of(spec), tmp_path / "model.safetensors")
    trained = read_manifest(tiny_model, "model").meta
    assert {"method", "model_id", "key", "dataset", "fit", "label_width", "parameters"} <= set(manifest.meta) & set(
        trained
    )


def test_the_same_file_imported_twice_is_the_same_model_and_another_statement_another_key(
    spec: RunSpec, theirs: dict[str, Tensor], tmp_path: Path
) -> None:
    write_weights(theirs, tmp_path / "a.pt")
    ways = ("ema", "ema", "raw", "not stated")
    found = [
        import_model(tmp_path / "a.pt", w, *target_of(spec), tmp_path / f"{i}.safetensors") for i, w in enumerate(ways)
    ]
    keys = [m.meta["key"] for m in found]
    assert keys[0] == keys[1] and len(set(keys)) == 3
    assert (tmp_path / "0.safetensors").read_bytes() == (tmp_path / "1.safetensors").read_bytes()
    with pytest.raises(SisError, match=r"weights are 'best'"):
        import_model(tmp_path / "a.pt", "best", *target_of(spec), tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("fit", "words"),
    [
        ({"patch": 2}, "no network with patch: 2"),
        ({"predict": "v"}, "no network with predict: v"),
        ({"conditioning": "concat"}, "no network with conditioning: concat"),
        ({"groups": 8}, "no network with groups: 8"),
        ({"width": 16}, "no network with width: 16"),
    ],
)
def test_a_run_whose_network_the_authors_do_not_have_takes_no_checkpoint_and_gives_none(
    spec: RunSpec, theirs: dict[str, Tensor], tmp_path: Path, fit: dict[str, Any], words: str
) -> None:
    other = replace(spec, fit=spec.fit | fit)
    write_weights(theirs, tmp_path / "a.pt")
    with pytest.raises(SisError, match=words):
        import_model(tmp_path / "a.pt", "ema", *target_of(other), tmp_path / "model.safetensors")
    assert not (tmp_path / "model.safetensors").exists()
    network, facts = target_of(other)
    with pytest.raises(SisError, match=words):
        sdm.from_model(network.state_dict(), facts.fit, tmp_path / "model.safetensors")


def test_checkpoints_of_unknown_formats_and_for_other_methods_are_refused(
    spec: RunSpec, theirs: dict[str, Tensor], tiny_model: Path, tmp_path: Path
) -> None:
    write_weights({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    network, facts = target_of(spec)
    with pytest.raises(SisError, match=r"no known format \(sdm\); the first is fc\.weight \[.*other\.pt\]"):
        import_model(tmp_path / "other.pt", "ema", network, facts, tmp_path / "m.safetensors")
    write_weights(theirs, tmp_path / "a.pt")
    with pytest.raises(SisError, match="a checkpoint of sdm, the run's method is real"):
        import_model(tmp_path / "a.pt", "ema", network, replace(facts, method="real"), tmp_path / "m.safetensors")
    with pytest.raises(SisError, match=r"no checkpoint format 'spm' - did you mean 'sdm'\?"):
        export_model(tiny_model, "spm", tmp_path / "out.pt")


def test_inspection_tells_the_network_that_a_file_fits(theirs: dict[str, Tensor], tmp_path: Path) -> None:
    write_weights(theirs, tmp_path / "a.pt")
    facts = inspect(tmp_path / "a.pt")
    assert facts["format"] == "sdm" and facts["label channels"] == LABELS and facts["image channels"] == 3
    assert facts["fit"] == SMALL | {"learn_sigma": True}
    assert facts["image size"] == "both sides divisible by 2"
    assert facts["parameters"] == f"{sum(v.numel() for v in theirs.values()):,}"
    assert facts["sha256"] == file_sha256(tmp_path / "a.pt") and facts["tensors"] == f"{len(theirs)}, float32"


def test_inspection_of_a_checkpoint_with_a_hole_names_the_file_and_the_hole(
    theirs: dict[str, Tensor], tmp_path: Path
) -> None:
    write_weights({k: v for k, v in theirs.items() if k != "out.0.bias"}, tmp_path / "a.pt")
    with pytest.raises(SisError, match=r"1 missing: out\.0\.bias \[.*a\.pt\]"):
        inspect(tmp_path / "a.pt")


# Command line


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    path = tmp_path / "foreign.yaml"
    fit = "{width: 32, multipliers: [1, 2], blocks: 1, attention: [2], diffusion_steps: 50}"
    path.write_text(
        "name: foreign\ntitle: Foreign\ndatasets:\n  scenes_tiny: {protocol: scenes-tiny}\n"
        f"runs:\n  released: {{method: sdm, fit: {fit}, sample: {{steps: 2}}}}\n"
    )
    return path


def test_the_three_commands_look_import_and_export(
    theirs: dict[str, Tensor], experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, model, back = tmp_path / "a.pt", tmp_path / "m" / "model.safetensors", tmp_path / "back.pt"
    write_weights(theirs, file)
    run = ["--experiment", str(experiment), "--dataset", "scenes_tiny", "--run", "released"]
    assert main(["checkpoint", "inspect", str(file)]) == 0
    assert "label channels  11\n" in capsys.readouterr().out
    assert main(["checkpoint", "import", str(file), *run, "--out", str(model)]) == 0
    assert read_manifest(model, "model").meta["source"]["weights"] == "not stated"
    assert main(["checkpoint", "inspect", str(model)]) == 0
    assert "imported from   a.pt\nweights         not stated\n" in capsys.readouterr().out
    assert main(["checkpoint", "export", str(model), "--format", "sdm", "--out", str(back)]) == 0
    assert back.read_bytes() == file.read_bytes() and file_sha256(back) in capsys.readouterr().out


def test_a_checkpoint_for_another_dataset_is_refused_on_one_line(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_weights(export_sdm(small(151).state_dict()), tmp_path / "a.pt")
    run = ["--experiment", str(experiment), "--dataset", "scenes_tiny", "--run", "released"]
    code = main(["checkpoint", "import", str(tmp_path / "a.pt"), *run, "--out", str(tmp_path / "m.safetensors")])
    error = capsys.readouterr().err
    assert code == 2 and len(error.splitlines()) == 1
    assert "the checkpoint was trained on 151 label channels, this dataset has 11" in error
    assert not (tmp_path / "m.safetensors").exists()


def test_a_model_on_the_meta_device_needs_no_memory_and_no_weights() -> None:
    with torch.device("meta"):
        state = {k: torch.empty(v.shape) for k, v in export_sdm(SDMUNet(UNetConfig(), 3, 36).state_dict()).items()}
    network = network_of(state)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(654.0e6, rel=1e-4)
    assert all(p.is_meta for p in network.parameters())


def test_loaded_weights_are_the_tensors_of_the_file(theirs: dict[str, Tensor], spec: RunSpec, tmp_path: Path) -> None:
    write_weights(theirs, tmp_path / "a.pt")
    import_model(tmp_path / "a.pt", "ema", *target_of(spec), tmp_path / "model.safetensors")
    tensors, _ = load_tensors(tmp_path / "model.safetensors", "model")
    assert torch.equal(tensors["unet.stem.weight"], theirs["input_blocks.0.0.weight"])
    assert torch.equal(tensors["unet.middle.1.qkv.weight"][..., 0], theirs["middle_block.1.qkv.weight"])
