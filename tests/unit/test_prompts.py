# SPDX-License-Identifier: Apache-2.0
"""Prompts: the cards, the text encoder that runs once, its file, the method that holds the embeddings, its stand-in."""

from __future__ import annotations

import argparse
import json
import socket
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sis.checkpoints.artefact import Target, export_model, import_model, inspect
from sis.checkpoints.prompt_embeddings import write_embeddings
from sis.cli_latent import add_latent_commands
from sis.config.files import dataset_card, label_space, project_root
from sis.config.prompts import prompt_card
from sis.data.tensors import load_tensors
from sis.errors import SisError
from sis.methods.contract import Context
from sis.methods.prompts import FitParams, Prompts
from sis.nets.latent import text as text_module
from sis.nets.latent.text import PromptEmbeddings, embed
from sis.training.loop import TrainingRun

LENGTH, WIDTH = 12, 16
#: Letters alone, and with the mark of a word's end; what CLIP calls its two special tokens.
LETTERS = "abcdefghijklmnopqrstuvwxyz,."
START, END = "<|startoftext|>", "<|endoftext|>"
TOKENS = ["!", *LETTERS, *[f"{c}</w>" for c in LETTERS], "th", "th</w>", START, END]
VOCABULARY = {token: number for number, token in enumerate(TOKENS)}


def encoder(folder: Path, layers: int = 2, inside: bool = True) -> Path:
    """A text encoder with random weights and its tokenizer, as the libraries save them."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    config = CLIPTextConfig(
        vocab_size=len(VOCABULARY), hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=layers,
        num_attention_heads=2, max_position_embeddings=LENGTH, bos_token_id=VOCABULARY[START],
        eos_token_id=VOCABULARY[END], pad_token_id=VOCABULARY[END], hidden_act="gelu",
    )  # fmt: skip
    torch.manual_seed(layers)
    model = CLIPTextModel(config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder / "text_encoder" if inside else folder)
    tokenizer = CLIPTokenizer(VOCABULARY, [("t", "h"), ("t", "h</w>")], model_max_length=LENGTH)
    tokenizer.save_pretrained(folder / "tokenizer" if inside else folder)
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here may ask anybody for anything."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder(tmp_path_factory.mktemp("base"))


def ids(words: str, padding: int) -> Tensor:
    """Tokens of words that are letters alone, by hand."""
    row = [VOCABULARY[START]]
    for word in words.split():
        row += [*(VOCABULARY[c] for c in word[:-1]), VOCABULARY[f"{word[-1]}</w>"]]
    row = [*row[: LENGTH - 1], VOCABULARY[END]]
    return torch.tensor([row + [padding] * (LENGTH - len(row))])


@pytest.mark.parametrize("words", ["ab cd", "", "a bcd efg hij klm nop"])
def test_embeddings_are_the_encoders_last_hidden_state(folder: Path, words: str) -> None:
    from transformers import CLIPTextModel

    model = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True).eval()
    with torch.inference_mode():
        wanted = model(input_ids=ids(words, VOCABULARY[END])).last_hidden_state
    found = embed([words, words], folder)
    assert found.embeddings.shape == (2, LENGTH, WIDTH) and found.facts["layers"] == 2
    assert torch.allclose(found.embeddings, wanted.expand(2, -1, -1), atol=1e-6)


def test_a_whole_openclip_encoder_gives_its_last_but_one_state_and_pads_with_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import CLIPTextModel

    monkeypatch.setattr(text_module, "_VIT_H", (3, WIDTH))
    model = CLIPTextModel.from_pretrained(encoder(tmp_path, 3, inside=False), local_files_only=True).eval()
    with torch.inference_mode():
        states = model(input_ids=ids("ab cd", 0), output_hidden_states=True)
        wanted = model.get_submodule("final_layer_norm")(states.hidden_states[-2])
    found = embed(["ab cd"], tmp_path)
    assert (found.facts["layers"], found.facts["padding"]) == (2, 0)
    assert torch.allclose(found.embeddings, wanted, atol=1e-6)
    assert not torch.allclose(found.embeddings, states.last_hidden_state, atol=1e-2)


def test_the_files_of_an_older_tokenizer_are_read_and_its_own_padding_is_kept(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text_encoder").symlink_to(folder / "text_encoder")
    place = tmp_path / "tokenizer"
    place.mkdir()
    (place / "vocab.json").write_text(json.dumps(VOCABULARY))
    (place / "merges.txt").write_text("#version: 0.2\nt h\nt h</w>\n")
    told = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": "!"}
    (place / "special_tokens_map.json").write_text(json.dumps(told))  # as in Stable Diffusion 2
    found = embed(["ab the"], tmp_path)
    assert found.facts["padding"] == 0
    other = embed(["ab the"], folder)
    assert torch.allclose(found.embeddings[:, :5], other.embeddings[:, :5], atol=1e-6)  # attention is causal
    assert not torch.allclose(found.embeddings[:, 6:], other.embeddings[:, 6:], atol=1e-2)


def test_files_of_whole_clip_models_and_pickled_ones_give_the_same(folder: Path, tmp_path: Path) -> None:
    other = encoder(tmp_path, inside=False)
    state = load_file(folder / "text_encoder" / "model.safetensors")
    older = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in state.items()}
    more = {"text_model.embeddings.position_ids": torch.arange(LENGTH)[None], "logit_scale": torch.ones(()),
            "vision_model.norm.weight": torch.ones(3), "text_projection.weight": torch.ones(2, 2)}  # fmt: skip
    (other / "model.safetensors").unlink()
    torch.save(older | more, other / "pytorch_model.bin")
    assert torch.equal(embed(["ab cd"], other).embeddings, embed(["ab cd"], folder).embeddings)


def test_what_is_not_an_encoder_on_this_machine_is_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    def refusal(place: Path) -> str:
        with pytest.raises(SisError) as caught:
            embed(["ab"], place)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    told = refusal(Path("some-organisation/stable-diffusion-2-1-base"))
    assert "text encoders are read from this machine alone" in told and "fetch the base model yourself" in told
    assert "no text encoder here" in refusal(tmp_path)
    lonely = tmp_path / "lonely"
    (lonely / "tokenizer").mkdir(parents=True)
    (lonely / "text_encoder").symlink_to(folder / "text_encoder")
    assert "no tokenizer here (tokenizer.json or vocab.json and merges.txt)" in refusal(lonely)
    (lonely / "tokenizer" / "tokenizer.json").write_text("{}")
    assert "not a tokenizer of CLIP" in refusal(lonely)
    cut = encoder(tmp_path / "cut", inside=False)
    state = load_file(cut / "model.safetensors")
    save_file({k: v for k, v in state.items() if ".layers.1." not in k}, cut / "model.safetensors")
    assert "config.json and the weights must be of one text encoder" in refusal(cut)
    narrow = encoder(tmp_path / "narrow", inside=False)
    facts = json.loads((narrow / "config.json").read_text()) | {"vocab_size": 20}
    (narrow / "config.json").write_text(json.dumps(facts))
    assert "use the tokenizer of the same model" in refusal(narrow)
    (narrow / "config.json").write_text("[")
    assert "not the configuration of a CLIP text encoder" in refusal(narrow)


@pytest.fixture
def written(folder: Path, tmp_path: Path) -> Path:
    """What the command writes with prompts of letters alone."""
    (tmp_path / "words.yaml").write_text(
        "name: words\nsource: nobody\npaper: {train: ab, positive: ab, negative: ''}\n"
        "release: {train: ab., positive: 'cd, the', negative: gh}\n"
    )
    out = tmp_path / "words.safetensors"
    run("--encoder", str(folder), "--dataset", "scenes", "--prompts", str(tmp_path / "words.yaml"),
        "--fidelity", "release", "--out", str(out))  # fmt: skip
    return out


def run(*words: str) -> None:
    parser = argparse.ArgumentParser()
    add_latent_commands(parser.add_subparsers())
    arguments = parser.parse_args(["embed-prompts", *words])
    arguments.run(arguments)


def test_the_command_writes_three_embeddings_and_what_made_them(written: Path, folder: Path) -> None:
    found = load_file(written)
    wanted = embed(["ab.", "cd, the", "gh"], folder).embeddings
    for name, value in zip(("train", "positive", "negative"), wanted, strict=True):
        assert torch.equal(found[name], value), name
    with safe_open(written, "pt") as file:
        facts = json.loads(file.metadata()["sis"])
    assert facts["prompts"] == {"train": "ab.", "positive": "cd, the", "negative": "gh"}
    assert (facts["dataset"], facts["fidelity"], facts["layers"]) == ("scenes", "release", 2)
    assert len(facts["sha256"]) == 64
    with pytest.raises(SisError, match=r"written as \.safetensors"):
        run("--encoder", str(folder), "--dataset", "ade20k", "--fidelity", "paper", "--out", "words.pt")


def network(tokens: int = LENGTH, width: int = WIDTH) -> PromptEmbeddings:
    with torch.device("meta"):
        return PromptEmbeddings(tokens, width)


def test_the_file_is_a_checkpoint_of_the_method(written: Path, tmp_path: Path) -> None:
    assert inspect(written)["format"] == "prompt_embeddings"
    assert inspect(written)["fit"] == {"tokens": LENGTH, "width": WIDTH}
    fit = FitParams(tokens=LENGTH, width=WIDTH).model_dump()
    out = tmp_path / "model.safetensors"
    import_model(written, "not stated", network(), Target("prompts", "id", "scenes", fit, 11), out)
    tensors, facts = load_tensors(out, "model")
    own, file = PromptEmbeddings(LENGTH, WIDTH), load_file(written)
    own.load_state_dict(tensors)
    assert facts["source"]["format"] == "prompt_embeddings"
    assert all(torch.equal(own.of(p, 2), file[p].expand(2, -1, -1)) for p in ("train", "positive", "negative"))
    export_model(out, "prompt_embeddings", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert all(torch.equal(back[k], file[k]) for k in file) and set(back) == set(file)


def test_embeddings_of_another_size_and_stand_ins_are_refused(written: Path, tmp_path: Path) -> None:
    def refusal(net: PromptEmbeddings, path: Path = written, **changes: object) -> str:
        fit = FitParams(tokens=LENGTH, width=WIDTH).model_dump() | changes
        with pytest.raises(SisError) as caught:
            import_model(path, "not stated", net, Target("prompts", "i", "scenes", fit, 11), tmp_path / "m.safetensors")
        return str(caught.value)

    assert f"set `fit: {{tokens: {LENGTH}, width: {WIDTH}}}`" in refusal(network(77, 1024))
    assert "leave out stand_in" in refusal(network(), stand_in=True)
    odd = tmp_path / "odd.safetensors"
    save_file({"train": torch.ones(2, 3), "positive": torch.ones(2, 3), "negative": torch.ones(2, 4)}, odd)
    assert "embeddings of prompts are all (tokens, width)" in refusal(network(), odd)
    write_embeddings(torch.ones(3, 2, 4), {}, tmp_path / "fine.safetensors")
    assert "is (2, 4) and should be (12, 16)" in refusal(network(), tmp_path / "fine.safetensors")


def method(**fit: object) -> Prompts:
    card = dataset_card("scenes_tiny")
    context = Context(card, label_space(card.labels), (32, 32), "cpu")
    return Prompts(context, FitParams.model_validate(fit), Prompts.SampleParams())


def test_a_stand_in_follows_from_the_seed_and_has_two_different_prompts(tmp_path: Path) -> None:
    def fitted(seed: int) -> dict[str, Tensor]:
        stand_in, training = method(stand_in=True, tokens=4, width=64), TrainingRun(tmp_path, "k", seed, "cpu", "t")
        stand_in.fit(None, training)  # type: ignore[arg-type]
        return training.average

    first, again, other = fitted(0), fitted(0), fitted(1)
    assert all(torch.equal(first[k], again[k]) for k in first) and not torch.equal(first["positive"], other["positive"])
    assert torch.equal(first["train_text"], first["positive"])
    assert (
        abs(float(torch.corrcoef(torch.stack([first["positive"].flatten(), first["negative"].flatten()]))[0, 1])) < 0.3
    )
    assert 0.8 < float(first["negative"].std()) < 1.2


def test_real_embeddings_are_never_trained(tmp_path: Path) -> None:
    with pytest.raises(SisError, match=r"imported, not trained.*`sis embed-prompts`"):
        method().fit(None, TrainingRun(tmp_path, "k", 0, "cpu", "t"))  # type: ignore[arg-type]


def test_datasets_have_the_prompts_of_the_card_that_they_are_like() -> None:
    card = prompt_card("cityscapes_512_release")
    assert card.name == "cityscapes"
    assert (card.paper.train, card.paper.positive) == ("City road scenes", "City road scenes")
    assert (card.release.train, card.release.positive) == (
        "City road scenes.", "Realistic city road scenes, best quality, extremely detailed",
    )  # fmt: skip
    for path in (project_root() / "config" / "prompts").glob("*.yaml"):
        found = prompt_card(path.stem)
        assert found.name == path.stem and found.paper.train == found.paper.positive
        assert found.release.positive.endswith(", best quality, extremely detailed")
        assert found.release.negative.startswith("longbody, lowres") and "\n" not in found.release.negative
    with pytest.raises(SisError, match=r"no prompts for the dataset scenes .*--prompts FILE"):
        prompt_card("scenes")
