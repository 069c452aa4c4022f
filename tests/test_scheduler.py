"""A checkpoint's scheduler settings give the schedule and the grid that DDIMScheduler gives."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
)

from doodl_cli.models.scheduler import read_schedule
from doodl_cli.sampling import SAMPLERS, make_grid

BETAS = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": [0.001 * (i + 1) for i in range(50)], "num_train_timesteps": 50},
]
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PUBLISHED = {
    "sd15": (PNDMScheduler, {"set_alpha_to_one": False, "steps_offset": 1}),
    "sd21": (
        DDIMScheduler,
        {"set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "v_prediction"},
    ),
    "sdxl": (EulerDiscreteScheduler, {"timestep_spacing": "leading", "steps_offset": 1}),
    "sdxl_turbo": (EulerAncestralDiscreteScheduler, {"timestep_spacing": "trailing"}),
}


def check(settings, reference, n_steps):
    schedule = read_schedule(settings)
    reference.set_timesteps(n_steps)
    grid = make_grid(schedule, n_steps)
    assert list(grid.t) == reference.timesteps.tolist()
    found = torch.tensor(schedule.alpha_bar, dtype=torch.float64)
    torch.testing.assert_close(found, reference.alphas_cumprod.double(), rtol=2e-4, atol=1e-9)
    assert schedule.alpha_bar_end == pytest.approx(reference.final_alpha_cumprod.item(), rel=1e-6)
    assert schedule.prediction == reference.config.prediction_type


@pytest.mark.parametrize("n_steps", [2, 7, 20, 50])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("betas", BETAS)
def test_every_kind_of_betas_and_spacing_is_that_of_ddim(betas, spacing, n_steps):
    for zero_snr in (False, True):
        reference = DDIMScheduler(
            timestep_spacing=spacing, rescale_betas_zero_snr=zero_snr, **betas
        )
        check(reference.config, reference, n_steps)


@pytest.mark.parametrize("family", PUBLISHED)
def test_the_settings_of_the_published_families_are_read_as_ddim_reads_them(family):
    cls, settings = PUBLISHED[family]
    config = cls(**STABLE_DIFFUSION, **settings).config
    check(config, DDIMScheduler.from_config(config), 20)


def test_linspace_goes_from_the_noisiest_timestep_to_the_first():
    schedule = read_schedule({"timestep_spacing": "linspace"})
    assert make_grid(schedule, 3).t == (999, 500, 0)
    assert make_grid(schedule, 1).t == (999,)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("set_alpha_to_one", [False, True])
def test_every_sampler_has_a_table_on_linspace(name, set_alpha_to_one):
    settings = {"timestep_spacing": "linspace", "set_alpha_to_one": set_alpha_to_one}
    table = SAMPLERS[name](make_grid(read_schedule(settings), 10))
    assert table.n_calls > 0
