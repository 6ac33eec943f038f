# SPDX-License-Identifier: Apache-2.0
"""The weights while they are trained: optimiser step, averaged weights, gradient scale, and refusals."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from sis.config.recipe import Recipe
from sis.data.schemas import LOSS_PARTS
from sis.diffusion.guards import is_exhausted, largest_fitting
from sis.errors import SisError, did_you_mean, first_of
from sis.training.batches import TrainBatch
from sis.training.precision import Precision
from sis.training.ranks import Ranks
from sis.training.state import State

#: The loss of each image `(b,)`, or named parts of it whose sum is the loss (`sis.data.schemas.LOSS_PARTS`).
Loss = Callable[[TrainBatch], Tensor | Mapping[str, Tensor]]

#: Steps in a row that fp16 may skip before the training is stopped.
_MOST_SKIPPED = 20


class Learned(NamedTuple):
    """What a step tells: means over its images, and the length of its gradient (infinite: the step was skipped)."""

    loss: float
    parts: dict[str, float]
    gradient_norm: float


class Learner:
    """A network, its averaged weights and its optimiser."""

    def __init__(self, network: nn.Module, loss: Loss, recipe: Recipe, device: str, ranks: Ranks, title: str) -> None:
        """Put the network on the device. Raises SisError for options that it cannot do."""
        self.network, self.loss, self.recipe, self.ranks, self.title = network, loss, recipe, ranks, title
        _check(network, recipe, ranks)
        network.to(device).train()
        if hasattr(network, "checkpointing"):
            network.checkpointing = recipe.checkpointing  # type: ignore[assignment]
        self.average = {k: v.detach().clone() for k, v in network.state_dict().items()}
        trained = [p for p in network.parameters() if p.requires_grad]
        self._frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
        self.optimiser = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
        self.precision = Precision(recipe.precision, device)
        self._skipped = 0

    def begin_second_stage(self) -> None:
        """Forget the optimiser's moments; weights and average start from one of the two."""
        self.optimiser.state.clear()
        if self.recipe.finetune_start == "ema":
            self.network.load_state_dict(self.average)
        else:
            self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}

    def step(self, step: int, batch: TrainBatch, image_ids: Callable[[], Sequence[str]]) -> Learned:
        """One optimiser step on this process' part of a batch.

        image_ids: those of all processes, for messages. Raises SisError when a loss or a gradient is not finite.
        """
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.rate(step)
        self.optimiser.zero_grad()
        losses = self.ranks.gather(self._backward(step, batch))
        finite = torch.isfinite(losses).all(0)
        if not bool(finite.all()):
            bad = [i for i, good in zip(image_ids(), finite.tolist(), strict=True) if not good]
            fix = "" if self.recipe.precision != "fp16" else "try precision bf16 or float32"
            self._refuse(f"the loss is not finite at step {step}: {first_of(bad)}", fix)
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        self.ranks.average(gradients)
        norm = self._apply(step, gradients, image_ids)
        if math.isfinite(norm):
            self._average(self.recipe.ema_decay(step))
        means = [float(row.mean()) for row in losses]
        return Learned(means[0], dict(zip(self._names, means[1:], strict=True)), norm)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """What holds while steps are made: the precision."""
        with self.precision.applied(self.network):
            yield

    def state(self) -> tuple[dict[str, Tensor], dict]:
        """Everything that the next step depends on: tensors, and plain numbers."""
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{k}": v for k, v in moments.items()}
        scaler = self.precision.scaler
        return tensors, {"skipped": self._skipped, "scaler": scaler.state_dict() if scaler else {}}

    def restore(self, state: State) -> None:
        """Continue from what `state` gave."""
        self.network.load_state_dict(state.under("network."))
        for name, value in state.under("average.").items():
            self.average[name].copy_(value)
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in state.under("optimiser.").items():
            index, key = name.split(".", 1)
            moments.setdefault(int(index), {})[key] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        self._skipped = state.meta["skipped"]
        if self.precision.scaler:
            self.precision.scaler.load_state_dict(state.meta["scaler"])

    def _backward(self, step: int, batch: TrainBatch) -> Tensor:
        """Add up the gradient of the mean loss; returns the losses of each image and their parts, `(1 + k, b)`."""
        count, found = len(batch.image_ids), list[Tensor]()
        for part in batch.parts(self.recipe.micro_batch):
            try:
                found.append(self._through(part, count))
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if is_exhausted(error):
                    traceback.clear_frames(error.__traceback__)  # they hold what filled the memory
                    self._explain_memory(step, part)
                raise
        return torch.cat(found, dim=1)

    def _through(self, part: TrainBatch, count: int) -> Tensor:
        """Send a part of `count` images through the network and back; returns what `_backward` does of it."""
        scaler = self.precision.scaler
        with self.precision.narrow():
            losses, parts = self._summed(self.loss(part), len(part.image_ids))
        mean = losses.mean()
        if len(part.image_ids) < count:
            mean = mean * (len(part.image_ids) / count)
        (mean if scaler is None else scaler.scale(mean)).backward()
        return torch.stack([losses, *parts]).detach()

    def _summed(self, loss: Tensor | Mapping[str, Tensor], count: int) -> tuple[Tensor, list[Tensor]]:
        parts = {} if isinstance(loss, Tensor) else dict(loss)
        unknown = [name for name in parts if name not in LOSS_PARTS]
        if unknown:
            raise SisError(f"a loss has no part {unknown[0]!r}", fix=did_you_mean(unknown[0], LOSS_PARTS))
        self._names = list(parts)
        if not isinstance(loss, Tensor):
            first, *others = parts.values()
            loss = first
            for other in others:
                loss = loss + other
        if loss.shape != (count,):
            raise SisError(f"a loss is one number an image, ({count},), this one is {tuple(loss.shape)}")
        return loss, list(parts.values())

    def _apply(self, step: int, gradients: list[Tensor], image_ids: Callable[[], Sequence[str]]) -> float:
        """Change the weights; returns the length of the gradient, infinity where fp16 skipped the step."""
        scaler = self.precision.scaler
        if scaler is None:
            norm = float(nn.utils.get_total_norm(gradients))
            if not math.isfinite(norm):
                shown = first_of(image_ids())
                self._refuse(f"the gradient is not finite at step {step}: {shown}", "lower the learning rate")
            self.optimiser.step()
            return norm
        scaler.unscale_(self.optimiser)
        norm = float(nn.utils.get_total_norm(gradients))
        scaler.step(self.optimiser)
        scaler.update()
        self._skipped = 0 if math.isfinite(norm) else self._skipped + 1
        if self._skipped >= _MOST_SKIPPED:
            what = f"the gradient was not finite in {self._skipped} steps in a row, {step} the last"
            self._refuse(what, "fp16 cannot hold it: use precision bf16 or float32, or lower the learning rate")
        return norm if math.isfinite(norm) else math.inf

    @torch.no_grad()
    def _average(self, decay: float) -> None:
        for name, value in self.network.state_dict().items():
            if value.is_floating_point() and name not in self._frozen:
                self.average[name].lerp_(value, 1 - decay)

    def _explain_memory(self, step: int, part: TrainBatch) -> NoReturn:
        """Refuse for want of memory, with the options to change; nothing is changed by itself."""
        count, (height, width) = len(part.image_ids), part.images.shape[-2:]
        what = f"out of memory at step {step}: {count} images of {height}x{width} go through the network together"
        largest = largest_fitting(count, lambda n: self._through(next(part.parts(n)), n))
        wishes = [f"set micro_batch to {largest}, the largest that fits,"] if largest else []
        wishes += [] if self.recipe.checkpointing or not hasattr(self.network, "checkpointing") else [
            "set checkpointing to true"
        ]  # fmt: skip
        fix = " or ".join(wishes).removesuffix(",") or "use a narrower precision, smaller images or more memory"
        raise SisError(what, where=self.title, fix=fix) from None

    def _refuse(self, what: str, fix: str) -> None:
        self.ranks.refuse(SisError(what, where=self.title, fix=fix))


def _check(network: nn.Module, recipe: Recipe, ranks: Ranks) -> None:
    """Raise SisError for a recipe that this network or these processes cannot follow."""
    if recipe.batch_size % ranks.count:
        what = f"a batch of {recipe.batch_size} images cannot be shared by {ranks.count} processes"
        ranks.refuse(SisError(what, fix="make batch_size divisible by their number"))
    if recipe.checkpointing and not hasattr(network, "checkpointing"):
        ranks.refuse(SisError("this method's network has no checkpointing", fix="set checkpointing to false"))
    whole = ranks.count == 1 and not 0 < recipe.micro_batch < recipe.batch_size
    norms = nn.modules.batchnorm._BatchNorm
    if not whole and any(isinstance(module, norms) for module in network.modules()):
        what = "the network's batch norm must see a whole batch at once"
        ranks.refuse(SisError(what, fix="set micro_batch to 0 and start one process"))
