"""Several guidances: one gradient through the chain, each term's share of it, and balance."""

from dataclasses import replace

import pytest
import torch

from doodl_cli.guidance import Guidance, combine
from doodl_cli.optimize import Settings, optimize
from doodl_cli.optimize.noise import initial_noise, make_generators
from doodl_cli.sampling import SAMPLERS, make_grid
from tests.problems import make_schedule
from tests.test_optimize import SHAPE, make_problem, run

PROMPTS = ["", ""]


def bright(images, prompts):
    return images.flatten(1).mean(1)


def steep_contrast(images, prompts):
    return 1e3 * images.flatten(1).var(1)


TERMS = {
    "bright": Guidance(bright, weight=2.0, n_crops=2, crop_size=8),
    "contrast": Guidance(steep_contrast, weight=-1.0),
}


def make_images():
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1).requires_grad_()


def combine_terms(guidance, images, balance=False):
    return combine(guidance, images, PROMPTS, make_generators([0, 1], "optimize"), balance)


def gradient_of(loss, images):
    return torch.autograd.grad(loss.sum(), images)[0]


def gradients_of_terms(images):
    """Return each term's own gradient (k, b, 3, h, w), not weighted, and its losses (k, b)."""
    generators = make_generators([0, 1], "optimize")
    losses = [term.loss(images, PROMPTS, generators) for term in TERMS.values()]
    return torch.stack([gradient_of(loss, images) for loss in losses]), torch.stack(losses)


def test_the_sum_and_its_gradient_are_those_of_the_weighted_losses():
    images = make_images()
    gradients, losses = gradients_of_terms(images)
    total, terms = combine_terms(TERMS, images)
    torch.testing.assert_close(total, 2 * losses[0] - losses[1])
    torch.testing.assert_close(gradient_of(total, images), 2 * gradients[0] - gradients[1])
    torch.testing.assert_close(terms.losses, losses.detach())
    assert torch.equal(terms.scales, torch.ones(2, 2))


def test_a_share_is_the_part_of_the_norms_of_the_weighted_gradients():
    images = make_images()
    gradients, _ = gradients_of_terms(images)
    norms = gradients.flatten(2).norm(dim=2) * torch.tensor([[2.0], [1.0]])
    _, terms = combine_terms(TERMS, images)
    torch.testing.assert_close(terms.shares, norms / norms.sum(0))
    assert terms.shares[1].min() > 0.9


def test_balanced_terms_pull_as_their_weights_say_and_keep_the_scale():
    images = make_images()
    gradients, losses = gradients_of_terms(images)
    norms = gradients.flatten(2).norm(dim=2)
    total, terms = combine_terms(TERMS, images, balance=True)
    torch.testing.assert_close(terms.shares, torch.tensor([[2 / 3] * 2, [1 / 3] * 2]))
    scaled = gradients * (norms.mean(0) / norms)[..., None, None, None]
    torch.testing.assert_close(gradient_of(total, images), 2 * scaled[0] - scaled[1])
    torch.testing.assert_close(total, 2 * losses[0] - losses[1])


def test_one_guidance_is_its_own_loss_bit_for_bit():
    images = make_images()
    for name, term in TERMS.items():
        for balance in (False, True):
            loss = term.weight * term.loss(images, PROMPTS, make_generators([0, 1], "optimize"))
            total, terms = combine_terms({name: term}, images, balance)
            assert torch.equal(total, loss)
            assert torch.equal(gradient_of(total, images), gradient_of(loss, images))
            assert torch.equal(terms.shares, torch.ones(1, 2))


def test_a_term_without_a_gradient_has_no_share_and_disturbs_none():
    images = make_images()
    guidance = {"bright": Guidance(bright), "flat": Guidance(lambda x, p: 0 * x.flatten(1).sum(1))}
    total, terms = combine_terms(guidance, images, balance=True)
    assert terms.shares.tolist() == [[1, 1], [0, 0]]
    assert gradient_of(total, images).isfinite().all()


def test_nothing_is_shared_where_nothing_is_differentiated():
    with torch.no_grad():
        total, terms = combine_terms(TERMS, make_images(), balance=True)
    assert total.isfinite().all()
    assert terms.shares.isnan().all()


@pytest.mark.parametrize("memory", ["reversible", "checkpoint", "full"])
@pytest.mark.parametrize("sampler", ["bdia", "edict"])
def test_terms_reach_x_T_together_in_every_memory_mode(memory, sampler):
    """The chain, the decoder and each scorer are passed as often as with one guidance."""
    problem = make_problem([0, 1])
    table = SAMPLERS[sampler](make_grid(make_schedule(), 6))
    problem = replace(problem, table=table, memory=memory)
    calls = {"net": 0, "decode": 0, "bright": 0}

    def counted(name, function):
        def call(*args):
            calls[name] += 1
            return function(*args)

        return call

    def run_with(guidance):
        calls.update(dict.fromkeys(calls, 0))
        counted_problem = replace(
            problem,
            guidance=guidance,
            net=counted("net", problem.net),
            decode=counted("decode", problem.decode),
        )
        x_T = initial_noise(problem.seeds, SHAPE)
        records = list(optimize(counted_problem, Settings(n_iters=1), (x_T, x_T)))
        return records, dict(calls)

    one = Guidance(counted("bright", bright))
    both = {"bright": one, "contrast": Guidance(steep_contrast, weight=0.5)}
    _, expected = run_with({"bright": one})
    records, found = run_with(both)
    assert found == expected
    total = Guidance(lambda x, p: bright(x, p) + 0.5 * steep_contrast(x, p))
    (reference, _), _ = run_with({"total": total})
    assert records[0].grad_norm == pytest.approx(reference.grad_norm, rel=1e-5)
    assert records[0].loss == pytest.approx(reference.loss, rel=1e-5)


def test_a_balanced_run_raises_the_weaker_score_too():
    problem = replace(
        make_problem([0, 1]),
        guidance={"bright": Guidance(bright), "contrast": Guidance(steep_contrast)},
    )
    gains = {}
    for balance in (False, True):
        records = run(problem, Settings(n_iters=8, lr=0.1, clip=1.0, balance=balance))
        first, last = records[0], records[-1]
        before, after = torch.tensor([first.guidance["bright"], last.guidance["bright"]])
        gains[balance] = after - before
        shares = torch.tensor([first.shares["bright"], first.shares["contrast"]])
        torch.testing.assert_close(shares.sum(0), torch.ones(2))
        if balance:
            torch.testing.assert_close(shares, torch.full((2, 2), 0.5))
    assert gains[True].min() > 0
    assert gains[True].sum() > gains[False].sum()


def test_balanced_iterates_are_judged_by_the_scales_of_the_start():
    problem = replace(
        make_problem([0]),
        guidance={"bright": Guidance(bright), "contrast": Guidance(steep_contrast)},
    )
    records = run(problem, Settings(n_iters=4, lr=0.1, clip=1.0, balance=True))
    terms = [[record.terms[name] for name in problem.guidance] for record in records]
    terms = torch.tensor(terms, dtype=torch.float64).squeeze(2)
    losses = torch.tensor([record.loss for record in records], dtype=torch.float64)
    scales = torch.linalg.lstsq(terms, losses).solution
    torch.testing.assert_close(terms @ scales, losses, rtol=1e-4, atol=1e-6)
    assert scales[0] > 100 * scales[1] > 0
