"""The tables are the published samplers, and every row can be undone."""

import itertools
import math

import pytest
import torch

from doodl_cli.sampling import SAMPLERS, bdia, ddim, edict, invert, make_grid, obelm, solve
from doodl_cli.sampling.schedule import Schedule, cumulate, scaled_linear
from tests.problems import ALPHA_BAR, gaussian_net, make_noise, make_schedule, make_smooth_net

INVERTIBLE = {"edict": edict, "bdia": bdia, "obelm": obelm}


def plain_edict(grid, net, x, p):
    """Return EDICT's pair from its four equations and the alternation, written out."""
    y = x.clone()
    for i, t in enumerate(grid.t):
        a = grid.alpha[i + 1] / grid.alpha[i]
        b = grid.sigma[i + 1] - a * grid.sigma[i]
        if i % 2 == 0:
            x = a * x + b * net(y, t)
            y = a * y + b * net(x, t)
        else:
            y = a * y + b * net(x, t)
            x = a * x + b * net(y, t)
        x = p * x + (1 - p) * y
        y = p * y + (1 - p) * x
    return x, y


@pytest.mark.parametrize("n_steps", [1, 2, 3, 4, 5, 20, 21, 50])
@pytest.mark.parametrize("p", [0.5, 0.93, 1.0])
@pytest.mark.parametrize("end", [None, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_edict_is_its_four_equations_with_the_alternation(n_steps, p, end, spacing):
    grid = make_grid(make_schedule(spacing=spacing, end=end), n_steps)
    net, x = make_smooth_net(), make_noise()
    found = solve(edict(grid, p), net, (x, x))
    for ours, theirs in zip(found, plain_edict(grid, net, x, p), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("n_steps", [1, 3, 20])
def test_ddim_is_its_equation(n_steps):
    grid = make_grid(make_schedule(), n_steps)
    net, x = make_smooth_net(), make_noise()
    expected = x
    for i, t in enumerate(grid.t):
        eps = net(expected, t)
        x_0 = (expected - grid.sigma[i] * eps) / grid.alpha[i]
        expected = grid.alpha[i + 1] * x_0 + grid.sigma[i + 1] * eps
    found = solve(ddim(grid), net, (x, x))[1]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_v_prediction_gives_the_same_picture_as_its_epsilon(name, prediction):
    found = {}
    for kind in ("epsilon", prediction):
        schedule = make_schedule(kind)
        table = SAMPLERS[name](make_grid(schedule, 20))
        x = make_noise()
        found[kind] = solve(table, gaussian_net(schedule, 0.7), (x, x))[table.x_0_slots[0]]
    torch.testing.assert_close(found[prediction], found["epsilon"], rtol=0, atol=1e-9)


@pytest.mark.parametrize(("name", "tolerance"), [("ddim", 0.02), ("bdia", 0.02), ("obelm", 2e-3)])
def test_samplers_converge_to_the_exact_flow_of_a_gaussian(name, tolerance):
    # The probability flow of N(0, s^2) scales x by std(0) / std(T), std(t)^2 = a_t s^2 + 1 - a_t.
    schedule, std = make_schedule(), 0.7
    table = SAMPLERS[name](make_grid(schedule, 500))
    x = make_noise()
    found = solve(table, gaussian_net(schedule, std), (x, x))[table.x_0_slots[0]]
    start = math.sqrt(ALPHA_BAR[-1] * std**2 + 1 - ALPHA_BAR[-1])
    torch.testing.assert_close(found, x * std / start, rtol=tolerance, atol=0)


@pytest.mark.parametrize("name", INVERTIBLE)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("n_steps", [1, 2, 5, 20, 49, 50])
def test_inversion_returns_the_pair(name, prediction, spacing, n_steps):
    schedule = make_schedule(prediction, spacing, end=None)
    table = INVERTIBLE[name](make_grid(schedule, n_steps))
    net, u, v = make_smooth_net(), make_noise(seed=1), make_noise(seed=2)
    back = invert(table, net, solve(table, net, (u, v)))
    torch.testing.assert_close(back[0], u, rtol=0, atol=1e-10)
    torch.testing.assert_close(back[1], v, rtol=0, atol=1e-10)


def test_the_network_is_not_called_where_it_does_not_matter():
    calls = []
    net = make_smooth_net()

    def counting(x, t):
        calls.append(t)
        return net(x, t)

    table = edict(make_grid(make_schedule(spacing="leading", end=None), 10))
    x = make_noise()
    solve(table, counting, (x, x))
    assert len(calls) == table.n_calls == 18  # the last of ten steps, at t = 0, goes nowhere


@pytest.mark.parametrize("n_steps", range(1, 1001, 37))
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("offset", [0, 1])
def test_every_number_of_steps_has_a_falling_grid(n_steps, spacing, offset):
    schedule = Schedule(ALPHA_BAR, 1.0, "epsilon", spacing, offset)
    t = make_grid(schedule, n_steps).t
    assert len(t) == n_steps
    assert all(t_from > t_to for t_from, t_to in itertools.pairwise(t))
    assert t[0] <= 999
    assert t[-1] >= 0


@pytest.mark.parametrize("n_steps", [0, -1, 1001])
def test_a_number_of_steps_out_of_range_is_refused(n_steps):
    with pytest.raises(ValueError, match=f"sampler.n_steps={n_steps}"):
        make_grid(make_schedule(), n_steps)


@pytest.mark.parametrize(("make", "value"), [(bdia, 0.15), (bdia, 1.01), (edict, 0.4), (edict, 2)])
def test_a_parameter_out_of_range_is_refused(make, value):
    with pytest.raises(ValueError, match="must be between"):
        make(make_grid(make_schedule(), 5), value)


@pytest.mark.parametrize(
    ("n_steps", "least"), [(3, 0.04642), (12, 0.4642), (20, 0.6310), (50, 0.8318), (200, 0.955)]
)
def test_gamma_must_leave_bdia_invertible(n_steps, least):
    grid = make_grid(make_schedule(), n_steps)
    bdia(grid, least)
    with pytest.raises(ValueError, match=f"must be between {least:.4g} and 1, for {n_steps} steps"):
        bdia(grid, least - 0.001)


@pytest.mark.parametrize(
    ("n_steps", "gamma"),
    [(2, 3600 ** (-1 / 2)), (4, 900 ** (-1 / 4)), (12, 100 ** (-1 / 12)), (1000, 0.9954)],
)
def test_a_gamma_that_is_not_given_damps_few_steps_more(n_steps, gamma):
    weight = bdia(make_grid(make_schedule(), n_steps)).rows[1].A
    assert weight == pytest.approx(gamma, abs=1e-4)


def test_a_smaller_gamma_does_not_swing_where_the_network_is_steep():
    """A network with many times the slope of a Gaussian's, as guidance makes it."""

    def steep(x, t):
        return 3 * torch.tanh(3 * x)

    def distance(gamma):
        grid = make_grid(make_schedule(), 12)
        x = make_noise()
        (found, near) = solve(bdia(grid, gamma), steep, (x, x))
        return (found - near).abs().max()

    assert distance(0.6) < 0.5 * distance(1.0)

    grid, x = make_grid(make_schedule(), 3), make_noise()  # few steps are damped more
    ddims, damped, swinging = (
        solve(table, steep, (x, x))[1] for table in (ddim(grid), bdia(grid), bdia(grid, 0.5))
    )
    assert (damped - ddims).abs().max() < 0.5 * (swinging - ddims).abs().max()


def test_zero_terminal_snr_starts_one_step_later_or_in_ddims_finite_form():
    alpha_bar = cumulate(scaled_linear(0.00085, 0.012), zero_snr=True)
    assert alpha_bar[-1] == 0.0
    assert alpha_bar[0] == ALPHA_BAR[0]
    grid = make_grid(Schedule(alpha_bar, 1.0, "v_prediction", "trailing"), 10)
    for name, make in SAMPLERS.items():
        table = make(grid)
        numbers = [number for row in table.rows for number in (row.A, row.B, row.C)]
        assert all(map(math.isfinite, numbers)), name
        assert table.rows[0].t == (999 if name == "ddim" else 899)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_growth_is_the_error_of_the_inverse_with_the_network_held_fixed(name):
    table = INVERTIBLE[name](make_grid(make_schedule(), 20))
    zero = make_noise() * 0
    columns = []
    for slot in range(2):
        pair = [zero, zero]
        pair[slot] = zero + 1
        u, v = invert(table, lambda x, t: x * 0, (pair[0], pair[1]))
        columns.append([u.flatten()[0], v.flatten()[0]])
    assert table.growth >= torch.linalg.matrix_norm(torch.tensor(columns), 2).item() * (1 - 1e-9)
    assert math.isinf(ddim(make_grid(make_schedule(), 20)).growth)
