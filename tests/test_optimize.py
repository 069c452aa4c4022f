"""The update rules, the scores, and that a sample's numbers are its own."""

import pytest
import torch

from doodl_cli.guidance import spherical_distance
from doodl_cli.guidance.crops import cut
from doodl_cli.guidance.scores import colourfulness, symmetry
from doodl_cli.optimize import Settings, initial_noise, optimize, render
from doodl_cli.optimize.noise import make_generators
from tests.problems import make_problem

SHAPE = (1, 4, 4)


def run(problem, settings):
    x_T = initial_noise(problem.seeds, SHAPE)
    return list(optimize(problem, settings, (x_T, x_T)))


@pytest.mark.parametrize("rule", ["doodl", "nesterov", "adam"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_rule_raises_the_score_and_keeps_the_norm(rule, tied):
    problem = make_problem([0, 1])
    records = run(problem, Settings(n_iters=12, lr=0.1, rule=rule, clip=1.0, tied=tied))
    first, last = records[0], records[-1]
    assert len(records) == 13
    for k in range(2):
        assert last.guidance["brightness"][k] > first.guidance["brightness"][k]
    assert last.latent_norm == pytest.approx(first.latent_norm, rel=1e-9)
    assert torch.equal(last.pair[0], last.pair[1]) == tied


def test_the_doodl_rule_is_momentum_on_the_clipped_gradient():
    # With the gradient far above the clip, step i moves each element by clip (1 + ... + 0.9^i).
    def steep(images, prompts):
        return 1e6 * images.flatten(1).sum(1)

    settings = Settings(n_iters=2, clip=1e-3, perturb=0.0, renormalize=False)
    records = run(make_problem([0], steep), settings)
    moved = [(r.pair[0] - records[0].pair[0]).abs() for r in records]
    torch.testing.assert_close(moved[1], torch.full_like(moved[1], 1e-3))
    torch.testing.assert_close(moved[2], torch.full_like(moved[2], 1e-3 * 2.9))


def test_a_record_renders_again_bit_for_bit():
    problem = make_problem([3, 4])
    for record in run(problem, Settings(n_iters=2)):
        assert torch.equal(render(problem, record.pair), record.images)


def test_random_numbers_do_not_depend_on_the_batch():
    together = initial_noise([5, 6, 7], SHAPE)
    assert torch.equal(together[1:2], initial_noise([6], SHAPE))
    images = torch.rand(3, 3, 32, 32)
    crops = cut(images, 4, 32, make_generators([5, 6, 7], "optimize"))
    alone = cut(images[1:2], 4, 32, make_generators([6], "optimize"))
    assert torch.equal(crops[4:8], alone)


def test_a_loss_that_turns_nan_stops_its_sample_alone():
    calls = 0

    def fragile(images, prompts):
        nonlocal calls
        calls += 1
        score = images.flatten(1).mean(1)
        bad = torch.tensor([float("nan") if calls > 3 else 1.0, 1.0])
        return score * bad

    records = run(make_problem([0, 1], fragile), Settings(n_iters=4))
    assert records[0].active == [True, True]
    assert records[-1].active == [False, True]
    assert torch.isfinite(torch.stack(records[-1].pair)).all()


def test_colourfulness_is_hasler_and_suesstrunks_formula():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for image, found in zip(images, colourfulness(images), strict=True):
        R, G, B = ((image + 1) * 127.5).double()
        rg, yb = R - G, (R + G) / 2 - B
        std = (rg.var(correction=0) + yb.var(correction=0)).sqrt()
        mean = (rg.mean() ** 2 + yb.mean() ** 2).sqrt()
        assert found.item() == pytest.approx((std + 0.3 * mean).item(), rel=1e-5)


def test_a_mirrored_picture_is_perfectly_symmetric():
    half = torch.rand(1, 3, 8, 4)
    assert symmetry(torch.cat([half, half.flip(-1)], dim=-1)).item() == 0
    assert symmetry(torch.rand(1, 3, 8, 8)).item() < 0


def test_spherical_distance_is_half_the_squared_angle():
    angle = torch.tensor([0.1, 1.0, 2.0, 3.0])
    torch.testing.assert_close(spherical_distance(angle.cos()), angle.square() / 2)
