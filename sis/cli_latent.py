# SPDX-License-Identifier: Apache-2.0
"""The command `sis embed-prompts`: the text encoder runs once, no other job needs it."""

from __future__ import annotations

import argparse
from pathlib import Path

_Commands = argparse._SubParsersAction


def add_latent_commands(commands: _Commands) -> None:
    """Add the command; its modules are imported when it runs."""
    text = "embed a dataset's constant prompts with a local text encoder (docs/sdm-lora.md)"
    embed = commands.add_parser("embed-prompts", help=text, description=text[0].upper() + text[1:] + ".")
    embed.set_defaults(run=_embed_prompts)
    embed.add_argument("--encoder", required=True, type=Path, help="folder with text_encoder/ and tokenizer/")
    embed.add_argument("--dataset", required=True, help="dataset whose prompts they are (config/prompts)")
    text = "prompts as the paper prints them, or as the released code has them"
    embed.add_argument("--fidelity", required=True, choices=["paper", "release"], help=text)
    embed.add_argument("--prompts", type=Path, help="file with other prompts (default: config/prompts by the dataset)")
    embed.add_argument("--out", required=True, type=Path, help="the embeddings' file (.safetensors)")


def _embed_prompts(arguments: argparse.Namespace) -> None:
    from sis.checkpoints.prompt_embeddings import write_embeddings
    from sis.config.files import named
    from sis.config.prompts import PromptCard, prompt_card
    from sis.errors import SisError
    from sis.nets.latent.text import embed

    if arguments.out.suffix != ".safetensors":
        raise SisError("embeddings are written as .safetensors", where=arguments.out, fix="change the name")
    given = arguments.prompts
    card = named("prompts", str(given), PromptCard) if given else prompt_card(arguments.dataset)
    prompts = getattr(card, arguments.fidelity)
    made = embed([prompts.train, prompts.positive, prompts.negative], arguments.encoder)
    facts = {"dataset": arguments.dataset, "fidelity": arguments.fidelity, "prompts": prompts.model_dump()}
    write_embeddings(made.embeddings, facts | made.facts, arguments.out)
    count, tokens, width = made.embeddings.shape
    print(f"wrote {arguments.out} ({count} prompts, {tokens} tokens, {width} wide)")  # noqa: T201
