"""Each method against its exact answer on a Gaussian problem, and what it is said to have cost.

The data are N(MEAN, STD^2) in every element, so the exact denoiser is known, and the loss is
quadratic, (x_0 - GOAL)^2 / (2 TAU^2), summed: -log of a Gaussian likelihood of GOAL given x_0. With

    k   = alpha STD^2 / D         D = alpha^2 STD^2 + sigma^2
    g   = MEAN + k (x - alpha MEAN) = E[x_0 | x_t = x], the guess of one evaluation
    eps = sigma (x - alpha MEAN) / D

every slope is affine in x, and so is a DDIM step, x <- a x + b eps: the recursions below are the
formulas of the papers with these three put in.
"""

import math
from dataclasses import replace

import pytest
import torch

from doodl_cli.guidance import Guidance
from doodl_cli.methods import METHODS
from doodl_cli.models.pipeline import adapt_pipeline
from doodl_cli.optimize import MicroBatch, Problem, Settings, initial_noise, optimize, render
from doodl_cli.optimize.noise import draw_noise, make_generators
from doodl_cli.sampling import SAMPLERS, make_grid, solve
from tests.pipelines import make_pipeline
from tests.problems import gaussian_net, make_problem, make_schedule, make_smooth_net

MEAN, STD, GOAL, TAU = 0.3, 0.7, 1.1, 0.5
UNCONDITIONAL_MEAN = -0.2
N_STEPS, SHAPE, SEEDS = 7, (1, 4, 4), [0, 1, 2]
PRECISION = {"rtol": 1e-9, "atol": 1e-9}
GUIDED = {
    "one_step": {"strength": 0.4, "blend": False},
    "full_chain": {"strength": 0.4},
    "universal": {"strength": 0.4, "n_backward": 3, "backward_lr": 0.02, "n_recurrences": 1},
}


class Halves:
    """A network with an unconditional half, as classifier-free guidance has it."""

    def __init__(self, schedule):
        self.guided = gaussian_net(schedule, STD, MEAN)
        self.negative = gaussian_net(schedule, STD, UNCONDITIONAL_MEAN)

    def __call__(self, x, t):
        return self.guided(x, t)

    def halves(self, x, t):
        return self.guided(x, t), self.negative(x, t)


def pose(sampler="ddim", prediction="epsilon", net=None, seeds=SEEDS):
    schedule = make_schedule(prediction)
    return Problem(
        table=SAMPLERS[sampler](make_grid(schedule, N_STEPS)),
        net=net or Halves(schedule),
        decode=lambda x_0: x_0,
        guidance={"goal": Guidance(closeness)},
        evaluation={},
        prompts=[""] * len(seeds),
        seeds=seeds,
        memory="checkpoint",
    )


def closeness(images, prompts):
    return -(images - GOAL).square().flatten(1).sum(1) / (2 * TAU**2)


def start(seeds=SEEDS):
    x_T = initial_noise(seeds, SHAPE)
    return x_T, x_T.clone()


def run(name, problem, x_T, **settings):
    return list(METHODS[name](problem, x_T, None, **settings))


def steps(problem):
    """Yield alpha, sigma, alpha_s, a, b, k and the slope of eps by x of every DDIM step."""
    grid = problem.table.grid
    for i in range(N_STEPS):
        alpha, sigma, alpha_s, sigma_s = (
            *(x[i] for x in (grid.alpha, grid.sigma)),
            *(x[i + 1] for x in (grid.alpha, grid.sigma)),
        )
        a = alpha_s / alpha
        d = alpha**2 * STD**2 + sigma**2
        yield alpha, sigma, alpha_s, a, sigma_s - a * sigma, alpha * STD**2 / d, sigma / d


def recur(problem, x, slope):
    """Return DDIM's end where eps moves by sigma times `slope(i, x, guess, alpha, sigma, k)`."""
    for i, (alpha, sigma, _, a, b, k, c) in enumerate(steps(problem)):
        offset = x - alpha * MEAN
        move = slope(i, x, MEAN + k * offset, alpha, sigma, k)
        x = a * x + b * (c * offset + sigma * move)
    return x


def remaining_chain(problem):
    """Return (p, q) of x_0 = p x + q at the start of every step, without guidance."""
    p, q, found = 1.0, 0.0, []
    for alpha, _, _, a, b, _, c in reversed(list(steps(problem))):
        p, q = p * (a + b * c), q - p * b * c * alpha * MEAN
        found.append((p, q))
    return found[::-1]


def check(records, expected):
    plain, guided = records
    assert (plain.iteration, guided.iteration) == (0, 1)
    torch.testing.assert_close(guided.x_0[1], expected, **PRECISION)
    assert not torch.allclose(plain.x_0[1], expected, atol=1e-2)


def test_none_is_the_plain_picture():
    problem, x_T = pose(), start()
    (record,) = run("none", problem, x_T)
    p, q = remaining_chain(problem)[0]
    expected = ((p * x_T[0] + q).clamp(-1, 1) + 1) * 127.5
    assert (record.images - expected).abs().max() <= 0.5 + 1e-6
    assert record.best == [True] * 3
    assert torch.equal(render(problem, record.pair), record.images)


def test_one_step_is_its_formula():
    problem, x_T = pose(), start()
    expected = recur(problem, x_T[0], lambda i, x, g, al, si, k: 0.4 * k * (g - GOAL) / TAU**2)
    check(run("one_step", problem, x_T, strength=0.4, blend=False), expected)


def test_one_step_with_the_releases_blend_is_its_formula():
    """Scored is y = sigma g + (1 - sigma) x, g from the unconditional mean."""
    problem, x_T = pose(), start()

    def slope(i, x, g, alpha, sigma, k):
        guess = UNCONDITIONAL_MEAN + k * (x - alpha * UNCONDITIONAL_MEAN)
        blend = sigma * guess + (1 - sigma) * x
        return 0.4 * (sigma * k + 1 - sigma) * (blend - GOAL) / TAU**2

    check(run("one_step", problem, x_T, strength=0.4, blend=True), recur(problem, x_T[0], slope))


def test_one_step_equals_a_plain_writing_for_a_network_that_is_not_linear():
    net, x_T = make_smooth_net(), start()
    problem = pose(net=net)
    x, grid = x_T[0], problem.table.grid
    for i, t in enumerate(grid.t):
        alpha_bar_t, alpha_bar_s = grid.alpha[i] ** 2, grid.alpha[i + 1] ** 2
        x = x.detach().requires_grad_()
        eps = net(x, t)
        guess = (x - (1 - alpha_bar_t) ** 0.5 * eps) / alpha_bar_t**0.5
        loss = (guess - GOAL).square().sum() / (2 * TAU**2)
        eps = eps + (1 - alpha_bar_t) ** 0.5 * 0.05 * torch.autograd.grad(loss, x)[0]
        guess = (x - (1 - alpha_bar_t) ** 0.5 * eps) / alpha_bar_t**0.5
        x = (alpha_bar_s**0.5 * guess + (1 - alpha_bar_s) ** 0.5 * eps).detach()
    check(run("one_step", problem, x_T, strength=0.05, blend=False), x)


@pytest.mark.parametrize("memory", ["reversible", "checkpoint", "full"])
@pytest.mark.parametrize("sampler", ["bdia", "edict", "obelm"])
def test_full_chain_moves_by_the_same_gradient_in_every_memory_mode(sampler, memory):
    problem, x_T = pose(sampler), start()
    _, expected = run("full_chain", problem, x_T, strength=0.1)
    _, record = run("full_chain", replace(problem, memory=memory), x_T, strength=0.1)
    torch.testing.assert_close(record.x_0, expected.x_0, **PRECISION)


@pytest.mark.parametrize("memory", ["checkpoint", "full"])
def test_full_chain_is_its_formula(memory):
    """From each step on the end is x_0 = p x + q, so the slope is p (p x + q - GOAL) / TAU^2."""
    problem, x_T = replace(pose(), memory=memory), start()
    chain = remaining_chain(problem)

    def slope(i, x, g, alpha, sigma, k):
        p, q = chain[i]
        return 0.4 * p * (p * x + q - GOAL) / TAU**2

    check(run("full_chain", problem, x_T, strength=0.4), recur(problem, x_T[0], slope))


@pytest.mark.parametrize("strength", [0.0, 0.4])
@pytest.mark.parametrize("n_backward", [0, 3])
@pytest.mark.parametrize("n_recurrences", [1, 2])
def test_universal_is_its_formula(strength, n_backward, n_recurrences):
    """m steps of rate r leave (1 - r / TAU^2)^m of g - GOAL, so D = ((1 - r / TAU^2)^m - 1) (...).

    A repeated step starts from x_t = (alpha_t / alpha_s) x_s + sqrt(1 - (alpha_t / alpha_s)^2) z.
    """
    rate = 0.02
    problem, x_T = pose(), start()
    generators, x_t = make_generators(SEEDS, "guide"), x_T[0]
    for alpha, sigma, alpha_s, a, b, k, c in steps(problem):
        for n in range(n_recurrences):
            g = MEAN + k * (x_t - alpha * MEAN)
            forward = strength * sigma * k * (g - GOAL) / TAU**2
            D = ((1 - rate / TAU**2) ** n_backward - 1) * (g - GOAL)
            eps = c * (x_t - alpha * MEAN) + forward - alpha / sigma * D
            x_s = a * x_t + b * eps
            if n + 1 < n_recurrences:
                noise = draw_noise(generators, SHAPE)
                ratio = alpha / alpha_s
                x_t = ratio * x_s + math.sqrt(1 - ratio**2) * noise
        x_t = x_s
    settings = {"n_backward": n_backward, "backward_lr": rate, "n_recurrences": n_recurrences}
    plain, guided = run("universal", problem, x_T, strength=strength, **settings)
    torch.testing.assert_close(guided.x_0[1], x_t, **PRECISION)
    if strength == n_backward == 0 and n_recurrences == 1:
        assert torch.equal(plain.x_0[1], guided.x_0[1])


def test_backward_guidance_alone_reaches_the_goal_where_the_chain_ends_at_alpha_1():
    settings = {"n_backward": 60, "backward_lr": TAU**2 / 2, "n_recurrences": 1}
    _, guided = run("universal", pose(), start(), strength=0.0, **settings)
    torch.testing.assert_close(guided.x_0[1], torch.full_like(guided.x_0[1], GOAL), **PRECISION)


def test_recurrence_needs_a_sampler_that_steps_from_one_state():
    with pytest.raises(ValueError, match="bdia cannot repeat a step"):
        run("universal", pose("bdia"), start(), **(GUIDED["universal"] | {"n_recurrences": 2}))


def exact_log_probability(schedule):
    """Return log p(GOAL | x_t), up to a constant: GOAL = x_0 + N(0, TAU^2), x_0 | x_t Gaussian."""

    def log_probability(x, t, prompts):
        alpha_bar = schedule.alpha_bar[t]
        alpha, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        d = alpha**2 * STD**2 + sigma**2
        guess = MEAN + alpha * STD**2 / d * (x - alpha * MEAN)
        variance = sigma**2 * STD**2 / d + TAU**2
        return -(guess - GOAL).square().flatten(1).sum(1) / (2 * variance)

    return log_probability


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_exact_noise_aware_classifier_samples_the_exact_posterior(sampler, prediction):
    """grad log p(x_t | y) = grad log p(x_t) + grad log p(y | x_t), with strength 1.

    The data given y = GOAL are N(m, s^2), 1 / s^2 = 1 / STD^2 + 1 / TAU^2 and
    m = s^2 (MEAN / STD^2 + GOAL / TAU^2): plain sampling with their denoiser, by the same sampler.
    """
    schedule = make_schedule(prediction)
    variance = 1 / (1 / STD**2 + 1 / TAU**2)
    mean = variance * (MEAN / STD**2 + GOAL / TAU**2)
    problem, x_T = pose(sampler, prediction), start()
    classifier = exact_log_probability(schedule)
    _, guided = run("noise_aware", problem, x_T, strength=1.0, classifier=classifier)
    expected = solve(problem.table, gaussian_net(schedule, variance**0.5, mean), x_T)
    torch.testing.assert_close(guided.x_0, expected, **PRECISION)


def test_best_of_n_keeps_the_noise_whose_exact_picture_is_best():
    problem, x_T = pose(), start()
    records = run("best_of_n", problem, x_T, n=6)
    p, q = remaining_chain(problem)[0]
    ends = torch.stack([p * record.pair[0] + q for record in records])
    losses = (ends.clamp(-1, 1) - GOAL).square().flatten(2).sum(2)
    best = torch.tensor([record.best for record in records])
    for k in range(len(SEEDS)):
        kept = best[:, k].nonzero().max()
        assert kept == losses[:, k].argmin()
    assert torch.equal(records[0].pair[0], x_T[0])
    assert len({record.pair[0].sum().item() for record in records}) == 6
    for record in records:
        assert torch.equal(render(problem, record.pair), record.images)


def test_doodl_closes_in_on_the_goal_as_gradient_descent_on_a_quadratic_does():
    """x_0 = p x_T + q: a step of rate r on the tied pair leaves 1 - r p^2 / (2 TAU^2) of the rest.

    The gradient of a tied pair is the mean of its two latents' (half of d loss / d x_T).
    """
    problem, x_T = pose(), start()
    p, q = remaining_chain(problem)[0]
    settings = Settings(
        n_iters=5, lr=0.1, momentum=0.0, clip=math.inf, perturb=0.0, renormalize=False
    )
    records = list(optimize(problem, settings, x_T))
    left = (1 - 0.1 * p**2 / (2 * TAU**2)) ** 5 * (p * x_T[0] + q - GOAL)
    torch.testing.assert_close(p * records[-1].pair[0] + q - GOAL, left, **PRECISION)


def test_doodl_with_candidates_optimises_the_noise_whose_picture_is_best():
    problem, x_T = pose(), start()
    settings = Settings(n_iters=3, lr=0.1)
    records = run("doodl", problem, x_T, settings=settings, n_candidates=5)
    assert [record.iteration for record in records] == list(range(5 + 4))
    searched = run("best_of_n", problem, x_T, n=5)
    for a, b in zip(records[:5], searched, strict=True):
        assert (a.loss, a.best) == (b.loss, b.best)
        assert torch.equal(a.pair[0], b.pair[0])
    best = torch.tensor([record.best for record in searched])
    chosen = [best[:, k].nonzero().max() for k in range(len(SEEDS))]
    assert len(set(map(int, chosen))) > 1  # else a mixed-up sample would not show
    noise = torch.stack([searched[n].pair[0][k] for k, n in enumerate(chosen)])
    alone = list(optimize(problem, settings, (noise, noise)))
    for a, b in zip(records[5:], alone, strict=True):
        assert (a.loss, a.best, a.iteration) == (b.loss, b.best, b.iteration + 5)
        assert torch.equal(a.pair[0], b.pair[0])


def test_doodl_without_candidates_is_the_optimisation_alone():
    problem, x_T = pose(), start()
    settings = Settings(n_iters=2, lr=0.1)
    records = run("doodl", problem, x_T, settings=settings, n_candidates=1)
    for a, b in zip(records, optimize(problem, settings, x_T), strict=True):
        assert (a.iteration, a.loss, a.best) == (b.iteration, b.loss, b.best)
        assert torch.equal(a.pair[0], b.pair[0])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", GUIDED)
def test_without_strength_the_guided_picture_is_the_plain_one_bit_for_bit(name, sampler):
    problem, x_T = pose(sampler), start()
    settings = GUIDED[name] | {"strength": 0.0}
    settings |= {"n_backward": 0} if name == "universal" else {}
    plain, guided = run(name, problem, x_T, **settings)
    assert torch.equal(plain.images, render(problem, x_T))
    for a, b in zip(plain.x_0, guided.x_0, strict=True):
        assert torch.equal(a, b)
    assert not any(guided.best)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", GUIDED)
def test_guidance_brings_the_picture_nearer_in_every_sampler(name, sampler):
    problem, x_T = pose(sampler), start()
    plain, guided = run(name, problem, x_T, **(GUIDED[name] | {"strength": 0.05}))
    assert all(a < b for a, b in zip(plain.guidance["goal"], guided.guidance["goal"], strict=True))
    assert all(guided.best)
    assert torch.equal(render(problem, guided.x_0, finished=True), guided.images)


@pytest.mark.parametrize("name", [*GUIDED, "best_of_n", "none"])
def test_a_samples_pictures_do_not_depend_on_its_batch(name):
    """Crops and the noise of recurrence are drawn from each sample's own generators."""
    settings = GUIDED.get(name, {"n": 3} if name == "best_of_n" else {})
    if name == "universal":
        settings = settings | {"n_recurrences": 2}
    cropped = {"goal": Guidance(closeness, n_crops=2, crop_size=4)}
    problem = replace(pose(), guidance=cropped)
    alone = replace(pose(seeds=[1]), guidance=cropped)
    together = run(name, problem, start(), **settings)
    for a, b in zip(together, run(name, alone, start([1]), **settings), strict=True):
        assert torch.equal(a.images[1:2], b.images)
        assert a.loss[1] == pytest.approx(b.loss[0], rel=1e-6)


def test_pure_noise_is_left_alone():
    """At alpha = 0 there is nothing that x_t says about the picture, and no eps to move."""
    schedule = make_schedule("v_prediction")
    schedule = replace(schedule, alpha_bar=(*schedule.alpha_bar[:-1], 0.0))
    problem = replace(pose(), table=SAMPLERS["ddim"](make_grid(schedule, N_STEPS)))
    problem = replace(problem, net=gaussian_net(schedule, STD, MEAN))

    def net(x, t):
        return gaussian_net(schedule, STD, MEAN)(x, t) if t < 999 else torch.full_like(x, -MEAN)

    for name, settings in GUIDED.items():
        records = run(name, replace(problem, net=net), start(), **settings)
        assert records[1].x_0[1].isfinite().all()


def test_a_picture_that_turned_nan_is_not_kept():
    problem, x_T = pose(), start()
    _, guided = run("one_step", problem, x_T, strength=1e300, blend=False)
    assert guided.active == [False] * 3
    assert not any(guided.best)


@pytest.mark.parametrize("k", range(5))
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("best_of_n", {"n": 5}),
        ("doodl", {"settings": Settings(n_iters=1, lr=0.1), "n_candidates": 3}),
    ],
)
def test_a_search_goes_on_from_any_record_to_the_same_ones(name, settings, k):
    problem = replace(
        make_problem([3, 5]), guidance={"goal": Guidance(closeness, n_crops=2, crop_size=4)}
    )
    x_T = start([3, 5])
    records = run(name, problem, x_T, **settings)
    state = records[k].state
    begun = state["x_T"][0], state["x_T"][1]  # what a run directory gives it to go on with
    rest = list(METHODS[name](problem, begun, state, **settings))
    assert len(rest) == 4 - k
    for a, b in zip(records[k + 1 :], rest, strict=True):
        assert a.iteration == b.iteration
        assert torch.equal(a.pair[0], b.pair[0])
        assert (a.loss, a.best) == (b.loss, b.best)


# network calls, vjps of one sample over n rows, the plain picture's n calls not counted
COSTS = {
    "none": lambda n: (0, 0),
    "best_of_n": lambda n: (2 * n, 0),
    "one_step": lambda n: (n, n),
    "one_step with blend": lambda n: (n, n),
    "full_chain": lambda n: (n * (n + 1), n * (n + 1) // 2),  # checkpoint: there and back
    "universal": lambda n: (n, n),
    "universal, backward alone": lambda n: (n, 0),
    "universal, each step twice": lambda n: (2 * n, 2 * n),
    "noise_aware": lambda n: (n, 0),
    "doodl": lambda n: (4 * n, 2 * n),  # 2 iterations; the start's record is one of the plain ones
    "doodl from the best of 3": lambda n: (3 * n + 4 * n, 2 * n),
}
COUNTED = {
    "none": ("none", {}),
    "best_of_n": ("best_of_n", {"n": 3}),
    "one_step": ("one_step", GUIDED["one_step"]),
    "one_step with blend": ("one_step", {"strength": 0.4, "blend": True}),
    "full_chain": ("full_chain", GUIDED["full_chain"]),
    "universal": ("universal", GUIDED["universal"]),
    "universal, backward alone": ("universal", GUIDED["universal"] | {"strength": 0.0}),
    "universal, each step twice": ("universal", GUIDED["universal"] | {"n_recurrences": 2}),
    "noise_aware": (
        "noise_aware",
        {"strength": 0.4, "classifier": lambda x, t, prompts: -x.flatten(1).square().sum(1)},
    ),
    "doodl": ("doodl", {"settings": Settings(n_iters=2), "n_candidates": 1}),
    "doodl from the best of 3": ("doodl", {"settings": Settings(n_iters=2), "n_candidates": 3}),
}


@pytest.fixture(scope="module")
def tiny():
    return adapt_pipeline(make_pipeline("sd15"))


@pytest.mark.parametrize("micro_batch", [2, 1])
@pytest.mark.parametrize("name", COSTS)
def test_the_reported_cost_is_what_a_wrapper_around_the_network_counts(tiny, name, micro_batch):
    """The wrapper counts the UNet's samples, two a guided call, and the gradients that arrive."""
    counted = {"network": 0, "vjps": 0}

    def wrapper(unet, arguments, outputs):
        n_samples = len(outputs[0]) // 2
        counted["network"] += n_samples
        if outputs[0].requires_grad:

            def arrive(gradient):
                counted["vjps"] += n_samples

            outputs[0].register_hook(arrive)

    n_steps, seeds = 4, [0, 1]
    problem = Problem(
        table=SAMPLERS["ddim"](make_grid(tiny.schedule, n_steps)),
        net=tiny.net(["a", "b"], ["", ""], 2.0),
        decode=tiny.decode,
        guidance={"brightness": Guidance(lambda images, prompts: images.flatten(1).mean(1))},
        evaluation={},
        prompts=["a", "b"],
        seeds=seeds,
        memory="checkpoint",
        micro_batch=MicroBatch(micro_batch),
    )
    x_T = initial_noise(seeds, tiny.latent_shape)
    tiny.calls.network = tiny.calls.vjps = 0
    handle = tiny.unet.register_forward_hook(wrapper)
    try:
        method, settings = COUNTED[name]
        run(method, problem, (x_T, x_T), **settings)
    finally:
        handle.remove()
    network, vjps = COSTS[name](problem.table.n_calls)
    expected = {"network": 2 * (network + problem.table.n_calls), "vjps": 2 * vjps}
    assert vars(tiny.calls) == counted == expected
