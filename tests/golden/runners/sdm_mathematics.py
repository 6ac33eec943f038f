# SPDX-License-Identifier: Apache-2.0
"""SDM's diffusion mathematics against the authors': schedules, posteriors, guidance, variational terms, losses."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runners import Case, Data, Found, Near
from sis.diffusion import gaussians, losses, samplers, schedule
from sis.diffusion.denoiser import Denoiser, Prediction, guided
from sis.diffusion.schedule import Schedule

#: Products and sums of double precision in another order, relative.
DOUBLE = 1e-11
#: Float32 on values of about one, and on losses; one of those is a thousand times larger than the others.
SINGLE, LOSS, LARGE = 2e-5, 2e-5, 1e-6


def schedule_of(config: dict[str, Any]) -> Schedule:
    """The chain that a case names."""
    full = schedule.named(config.get("noise_schedule", "linear"), config["diffusion_steps"])
    spacing = config["timestep_respacing"]
    return full.respaced(spacing) if spacing else full


def scale_of(s: float) -> float:
    """Our guidance scale of the authors' s: theirs is not applied below 1, ours is refused there."""
    return max(s, 1.0)


def schedules(case: Case, data: Data) -> Found:
    found: dict[str, NDArray | Near] = {}
    for spec in case["config"]["specs"]:
        chain, name = schedule_of(spec), spec["name"]
        of_start, of_current = chain.posterior_coefficients
        arrays = {
            "betas": chain.betas,
            "alphas_cumprod": chain.alphas_cumprod,
            "alphas_cumprod_prev": chain.alphas_cumprod_prev,
            "posterior_variance": chain.posterior_variance,
            "posterior_log_variance_clipped": chain.posterior_log_variance_clipped,
            "posterior_mean_coef1": of_start,
            "posterior_mean_coef2": of_current,
        }
        found[f"{name}__timestep_map"] = chain.timesteps
        found |= {f"{name}__{key}_f64": Near(array, DOUBLE, DOUBLE) for key, array in arrays.items()}
    return found


def diffusion_math(case: Case, data: Data) -> Found:
    given = {name: torch.from_numpy(array) for name, array in data.items()}
    chain, t = schedule_of(case["config"]), given["t"]
    x0, noise = given["x0"], given["noise"]
    noisy = chain.q_sample(x0, t, noise)
    mean, variance, log_variance = gaussians.q_mean_variance(chain, x0, t)
    rows = {"q_var": variance, "q_logvar": log_variance}
    rows["post_var"] = schedule.take(chain.posterior_variance, t, x0)
    rows["post_logvar"] = schedule.take(chain.posterior_log_variance_clipped, t, x0)
    rows["fixedlarge_logvar"] = gaussians.reverse_log_variance(chain, x0, t, None, "large")
    pixels = {"q_sample": noisy, "q_mean": mean, "post_mean": gaussians.posterior_mean(chain, x0, noisy, t)}
    head = given["net_cond"][:, : x0.shape[1]]
    pixels["normal_kl"] = gaussians.normal_kl(x0, 0.3 * noise, noisy, 0.2 * head)
    pixels["disc_gauss_ll"] = gaussians.discrete_log_likelihood(x0, x0 + 0.02 * noise, 0.5 * head - 3)
    found: dict[str, NDArray | Near] = {"net_timesteps": chain.timesteps[data["t"]]}
    found |= {name: Near(value.flatten().numpy(), SINGLE, SINGLE) for name, value in rows.items()}
    found |= {name: Near(value.numpy(), SINGLE, SINGLE) for name, value in pixels.items()}
    found |= steps(chain, given, noisy, case["config"]["s"])
    return found | {name: Near(value.numpy(), LOSS, LARGE) for name, value in terms(chain, given, noisy).items()}


def steps(chain: Schedule, given: dict[str, Tensor], noisy: Tensor, s: float) -> dict[str, NDArray | Near]:
    """Reverse steps under several scales, and how often each asked the network."""
    t, found = given["t"], dict[str, "NDArray | Near"]()
    statistics = torch.stack([given["chan_mean"], given["chan_std"]])
    cases: dict[str, tuple[float, bool, Tensor | None]] = {
        "noguid": (1.0, True, None), "noclip": (1.0, False, None), "guid": (s, True, None),
        "guid_s1": (1.0, True, None), "guid_s05": (0.5, True, None), "chanstat": (1.0, True, statistics),
    }  # fmt: skip
    for name, (scale, clip, wanted) in cases.items():
        calls: list[Tensor] = []
        with_label, without = stored(given["net_cond"], calls), stored(given["net_null"], calls)
        answer = guided(with_label, without, scale_of(scale))(noisy, t)
        step = samplers.reverse(chain, answer, noisy, t, clip, "learned", wanted)
        values = {"mean": step.mean, "variance": step.log_variance.exp(), "log_variance": step.log_variance}
        values["pred_xstart"] = step.start
        found |= {f"{name}_{key}": Near(value.numpy(), SINGLE, SINGLE) for key, value in values.items()}
        found[f"{name}_ncalls"] = np.array(len(calls))
    return found


def stored(output: Tensor, calls: list[Tensor]) -> Denoiser:
    """A network whose answer is known."""

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        calls.append(t)
        return Prediction(*output.chunk(2, dim=1))

    return denoise


def terms(chain: Schedule, given: dict[str, Tensor], noisy: Tensor) -> dict[str, Tensor]:
    """The bound's terms, and the losses of all the ways in which the authors' flags combine them."""
    x0, t, noise, output = given["x0"], given["t"], given["noise"], given["net_cond"]
    eps, variance = output.chunk(2, dim=1)
    simple, variational = losses.hybrid_terms(chain, output, x0, noisy, t, noise)
    assert variational is not None
    bound = losses.variational_term(chain, eps, variance, x0, noisy, t)
    rescaled = variational * len(chain) / 1000  # rescale_learned_sigmas: nothing at 1000 steps
    return {
        "vb_bpd": bound,
        "vb_bpd_clip": losses.variational_term(chain, eps, variance, x0, noisy, t, clip=True),
        "prior_bpd": losses.prior_term(chain, x0),
        "train_vb": variational,
        "train_mse": simple,
        "train_loss": losses.hybrid_loss(chain, output, x0, noisy, t, noise),
        "train_rescaled_vb": rescaled,
        "train_rescaled_mse": simple,
        "train_rescaled_loss": simple + rescaled,
        "train_kl_loss": bound * len(chain),  # use_kl: one term stands for all of the bound
        "train_fixedsigma_loss": losses.hybrid_loss(chain, eps, x0, noisy, t, noise),
    }
