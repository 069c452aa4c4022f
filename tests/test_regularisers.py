"""Terms on x_T against their closed forms, and how they enter a step; stopping early."""

import math

import pytest
import torch

from doodl_cli.optimize import Settings, initial_noise, optimize
from doodl_cli.optimize.regularisers import REGULARISERS, chi_norm, kl_prior, regularise
from tests.problems import brightness, make_problem

SHAPE = (1, 4, 4)
OFF = Settings(n_iters=1, clip=math.inf, perturb=0.0, renormalize=False)


def run(problem, settings):
    x_T = initial_noise(problem.seeds, SHAPE)
    return list(optimize(problem, settings, (x_T, x_T)))


def latents(*shape, scale=1.3, shift=0.2):
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64) + shift


def test_the_chi_norm_is_renos_formula_and_its_gradient_is_along_x_T():
    pair = latents(2, 3, 4, 5, 6)
    d = 4 * 5 * 6
    norm = pair.flatten(2).norm(dim=2)
    expected = norm.square() / 2 - (d - 1) * norm.log()
    torch.testing.assert_close(chi_norm(pair), expected)
    values, gradient = regularise(pair, {"chi_norm": 0.01})
    torch.testing.assert_close(values["chi_norm"], expected.mean(0))
    factor = 1 - (d - 1) / norm.square()
    closed = 0.01 * pair * factor[..., None, None, None] / 2  # half: the mean over the pair
    torch.testing.assert_close(gradient, closed)


def test_the_chi_norm_is_least_at_the_likeliest_norm_of_noise():
    x = latents(1, 4, 8, 8)
    x *= math.sqrt(4 * 8 * 8 - 1) / x.norm()
    _, gradient = regularise(torch.stack([x, x]), {"chi_norm": 1.0})
    assert gradient.abs().max() < 1e-12
    assert chi_norm(0.9 * x) > chi_norm(x)
    assert chi_norm(1.1 * x) > chi_norm(x)


def test_the_divergence_from_the_prior_is_that_of_the_fitted_gaussian():
    x = latents(2, 3, 4, 5, 6)
    flat = x.flatten(2)
    fitted = torch.distributions.Normal(flat.mean(2), flat.std(2, correction=0))
    prior = torch.distributions.Normal(*torch.tensor([0.0, 1.0], dtype=torch.float64))
    expected = torch.distributions.kl_divergence(fitted, prior)
    torch.testing.assert_close(kl_prior(x), expected)
    values, gradient = regularise(x, {"kl_prior": 2.0})
    torch.testing.assert_close(values["kl_prior"], expected.mean(0))
    mean, variance = flat.mean(2, keepdim=True), flat.var(2, correction=0, keepdim=True)
    closed = (mean + (flat - mean) * (1 - 1 / variance)) / flat.shape[2]
    torch.testing.assert_close(gradient.flatten(2), closed)  # 2 (weight) / 2 (mean over the pair)


@pytest.mark.parametrize("name", REGULARISERS)
def test_the_gradient_is_that_of_differences(name):
    x = latents(*SHAPE)
    assert torch.autograd.gradcheck(REGULARISERS[name], x.requires_grad_())


@pytest.mark.parametrize("tied", [True, False])
def test_its_gradient_is_added_to_that_of_the_guidance(tied):
    weights = {"chi_norm": 0.3, "kl_prior": 2.0}
    plain = run(make_problem([0, 1]), Settings(**vars(OFF) | {"tied": tied}))
    both = run(
        make_problem([0, 1]), Settings(**vars(OFF) | {"tied": tied, "regularisers": weights})
    )
    values, gradient = regularise(torch.stack(plain[0].pair), weights)
    for slot in range(2):
        moved = both[1].pair[slot] - plain[1].pair[slot]
        torch.testing.assert_close(moved, -gradient[slot], rtol=0, atol=1e-12)
    for name, value in values.items():
        assert both[0].regularisers[name] == value.tolist()
    weighted = sum(weights[name] * value for name, value in values.items())
    for k in range(2):
        assert both[0].loss[k] == pytest.approx(plain[0].loss[k] + weighted[k].item())
    assert both[0].grad_norm != plain[0].grad_norm


def test_it_is_added_before_clipping():
    settings = Settings(**vars(OFF) | {"clip": 1e-3, "regularisers": {"chi_norm": 1e3}})
    records = run(make_problem([0]), settings)
    moved = records[1].pair[0] - records[0].pair[0]
    torch.testing.assert_close(moved.abs(), torch.full_like(moved, 1e-3))


def test_the_chi_norm_brings_a_norm_back():
    problem = make_problem([0])
    x_T = 1.5 * initial_noise([0], SHAPE)
    settings = Settings(**vars(OFF) | {"n_iters": 40, "lr": 0.2, "regularisers": {"chi_norm": 1.0}})
    records = list(optimize(problem, settings, (x_T, x_T)))
    target = math.sqrt(math.prod(SHAPE) - 1)
    assert abs(records[-1].latent_norm[0] - target) < abs(records[0].latent_norm[0] - target) / 2


def test_without_regularisers_nothing_is_said_of_them():
    assert run(make_problem([0]), OFF)[0].regularisers == {}


def test_a_sample_whose_held_out_score_falls_stops_and_the_others_go_on():
    def opposite(images, prompts):  # falls for the first sample as the guidance rises
        return brightness(images, prompts) * torch.tensor([-1.0, 1.0])

    def optimise(**options):
        problem = make_problem([0, 1], evaluation={"opposite": opposite})
        return run(problem, Settings(n_iters=8, lr=0.1, clip=1.0, perturb=0.0, **options))

    free, records = optimise(), optimise(stop_on="opposite", patience=3)
    falling = [record.evaluate["opposite"][0] for record in free]
    assert sorted(falling, reverse=True) == falling
    assert len(records) == 9
    assert [record.stopped[0] is not None for record in records[:4]] == [False, False, False, True]
    assert "opposite at iteration 3 has been below its highest" in records[3].stopped[0]
    assert "at iteration 0) for 3 iterations" in records[3].stopped[0]
    assert records[3].active == [True, True]
    assert all(record.active == [False, True] for record in records[4:])
    best = max(range(4), key=lambda i: records[i].guidance["brightness"][0])
    for record in records[4:]:
        assert torch.equal(record.pair[0][0], records[best].pair[0][0])
        assert record.stopped[1] is None
    for record, other in zip(records, free, strict=True):
        assert torch.equal(record.pair[0][1], other.pair[0][1])


def test_a_run_ends_when_every_sample_has_stopped():
    def darkness(images, prompts):
        return -brightness(images, prompts)

    problem = make_problem([0, 1], evaluation={"darkness": darkness})
    settings = Settings(n_iters=9, lr=0.1, clip=1.0, stop_on="darkness", patience=2)
    records = run(problem, settings)
    assert len(records) == 3
    assert all(records[-1].stopped)


def test_a_score_that_recovers_in_time_does_not_stop_its_sample():
    scores = iter([3.0, 2.0, 4.0, 3.0, 3.5, 5.0])

    def wavering(images, prompts):
        return torch.full((len(images),), next(scores))

    problem = make_problem([0], evaluation={"wavering": wavering})
    records = run(problem, Settings(n_iters=5, stop_on="wavering", patience=3))
    assert len(records) == 6
    assert not any(record.stopped[0] for record in records)
