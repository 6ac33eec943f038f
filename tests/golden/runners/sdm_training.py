# SPDX-License-Identifier: Apache-2.0
"""SDM's training against the authors': the project's own loop, fed with their batches, time steps and noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runners import Case, Data, Found, Near
from runners.sdm_mathematics import LOSS, schedule_of
from runners.sdm_network import network
from sis.checkpoints.sdm import export_sdm
from sis.config.files import label_space
from sis.config.recipe import Recipe
from sis.data.policies import Draw
from sis.data.records import RawBatch
from sis.data.training_data import TrainingData
from sis.diffusion import losses
from sis.diffusion.schedule import Schedule
from sis.nets.sdm_unet import SDMUNet
from sis.training.loop import TrainBatch, TrainingRun

#: Relative to the largest entry of a gradient; of the learning rate, for weights after Adam's steps; a step's rounding.
GRADIENT, WEIGHT, ROUNDING = 1e-4, 0.05, 1.2e-7


class NoRecords:
    """Pictures that the loop reads and the loss does not look at."""

    def fill(self, batch: RawBatch, position: int, index: int, draw: Draw | None) -> None:
        batch.images[position], batch.labels[position] = 0, 0


def train_steps(case: Case, data: Data) -> Found:
    config = case["config"]
    assert (config["betas"], config["eps"]) == ([0.9, 0.999], 1e-8), "AdamW's own"
    net = network(config["model"], case["keys"])
    chain = schedule_of({"diffusion_steps": 1000, "timestep_respacing": ""} | config)
    steps, size = data["x"].shape[:2]
    recipe = Recipe(
        steps=steps,
        batch_size=size,
        learning_rate=config["lr"],
        weight_decay=config["weight_decay"],
        ema=config["ema_rate"],
        flip=False,
    )
    found: dict[str, NDArray | Near] = {}
    gradients = first_gradients(net)
    ids, shape = [str(i) for i in range(size)], (data["x"].shape[-2], data["x"].shape[-1])
    images = TrainingData(ids, shape, label_space("scenes"), NoRecords(), instances=False, augmented=False)
    with TemporaryDirectory() as folder:
        run = TrainingRun(Path(folder), "golden", 0, "cpu", "golden")
        run.optimise(net, stored_losses(net, chain, data, found), images, recipe)
    named = export_sdm(gradients)
    for key in (name.removeprefix("grad0__") for name in data if name.startswith("grad0__")):
        found[f"grad0__{key}"] = relative(named[key])
    norms = np.array([float(named[key].double().square().sum()) for key in config["param_order"]])
    # A bias that a norm cancels has no gradient but rounding: the floor lies far below all others.
    found["grad0_sqnorm_per_key"] = Near(norms, 1e-9 * float(norms.max()), 2 * GRADIENT)
    near, rounding = WEIGHT * config["lr"], ROUNDING * (steps + 1)
    for kind, state in (("param", net.state_dict()), ("ema", run.average)):
        weights = export_sdm(state)
        found |= {f"{kind}__{key}": Near(weights[key].numpy(), near, rounding) for key in weights}
    return found


def stored_losses(
    net: SDMUNet, chain: Schedule, data: Data, found: dict[str, NDArray | Near]
) -> Callable[[TrainBatch], Tensor]:
    """The loss of each step on the authors' batch; notes its terms."""
    steps = iter(range(len(data["x"])))

    def loss(batch: TrainBatch) -> Tensor:
        step = next(steps)
        x, noise, t = (torch.from_numpy(data[name][step]) for name in ("x", "noise", "t"))
        noisy = chain.q_sample(x, t, noise)
        output = net(noisy, torch.from_numpy(chain.timesteps)[t], torch.from_numpy(data["y"][step]).float())
        simple, variational = losses.hybrid_terms(chain, output, x, noisy, t, noise)
        whole = losses.hybrid_loss(chain, output, x, noisy, t, noise)
        values = {"mse": simple, "vb": variational, "loss": whole}
        found.update({f"step{step}_{k}": Near(v.detach().numpy(), LOSS) for k, v in values.items() if v is not None})
        return whole

    return loss


def first_gradients(net: SDMUNet) -> dict[str, Tensor]:
    """Filled with every parameter's gradient when it is computed for the first time."""
    gradients: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            gradients.setdefault(name, parameter.grad.clone())

        return hook

    for name, parameter in net.named_parameters():
        parameter.register_post_accumulate_grad_hook(keep(name))
    return gradients


def relative(gradient: Tensor) -> Near:
    return Near(gradient.numpy(), GRADIENT * float(gradient.abs().max()))
