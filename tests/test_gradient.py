"""Every memory mode gives the same, exact gradient; the reversible one keeps nothing."""

import gc

import pytest
import torch

from doodl_cli.gradient import choose_memory, count_saved_bytes, differentiate
from doodl_cli.sampling import SAMPLERS, make_grid, solve
from tests.problems import make_noise, make_schedule, make_smooth_net, square_loss

MODES = [
    (name, memory)
    for name in SAMPLERS
    for memory in ("reversible", "checkpoint")
    if (name, memory) != ("ddim", "reversible")
]


def relative(found, expected):
    """Return the largest difference against the largest value, over both latents."""
    found, expected = torch.stack(found), torch.stack(expected)
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize(("name", "memory"), MODES)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("n_steps", [2, 3, 4, 5, 20, 21])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_memory_modes_agree(name, memory, prediction, n_steps, dtype, tolerance):
    table = SAMPLERS[name](make_grid(make_schedule(prediction), n_steps))
    net, pair = make_smooth_net(dtype=dtype), (make_noise(seed=1), make_noise(seed=2))
    found = differentiate(table, net, pair, square_loss, memory)
    full = differentiate(table, net, pair, square_loss, "full")
    torch.testing.assert_close(found.loss, full.loss)
    assert relative(found.pair, full.pair) < tolerance


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("n_steps", [3, 4])
def test_the_gradient_is_the_finite_difference(name, n_steps):
    table = SAMPLERS[name](make_grid(make_schedule(), n_steps))
    net, x = make_smooth_net(), make_noise(b=1)
    memory = "reversible" if table.invertible else "checkpoint"
    gradient = sum(differentiate(table, net, (x, x), square_loss, memory).pair)

    def loss(x):
        x_0 = solve(table, net, (x, x))
        return sum(square_loss(x_0[slot])[0] for slot in table.x_0_slots) / len(table.x_0_slots)

    for index in range(x.numel()):
        step = torch.zeros(x.numel(), dtype=x.dtype)
        step[index] = 1e-5
        step = step.view_as(x)
        difference = (loss(x + step) - loss(x - step)).item() / 2e-5
        expected = gradient.flatten()[index].item()
        assert difference == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", ["edict", "bdia", "obelm"])
def test_the_round_trip_is_reported_and_tiny(name):
    table = SAMPLERS[name](make_grid(make_schedule(), 50))
    x = make_noise()
    found = differentiate(table, make_smooth_net(dtype=torch.float32), (x, x), square_loss)
    assert found.round_trip_error.shape == (3,)
    assert found.round_trip_error.max() < 1e-10


def count_live_tensors(n_steps, memory):
    """Return how many latents are alive at most while the network is called on the way forwards."""
    shape, most = (1, 1, 64, 64), 0

    def net(x, t):
        nonlocal most
        alive = [o for o in gc.get_objects() if isinstance(o, torch.Tensor) and o.shape == shape]
        most = max(most, len(alive))
        return x.sin()

    x = torch.randn(shape, dtype=torch.float64)
    table = SAMPLERS["edict"](make_grid(make_schedule(), n_steps))
    differentiate(table, net, (x, x), square_loss, memory)
    return most


def test_the_reversible_mode_keeps_no_state_of_a_step():
    assert count_live_tensors(4, "reversible") == count_live_tensors(16, "reversible")
    assert count_live_tensors(16, "checkpoint") >= count_live_tensors(4, "checkpoint") + 20


def saved_bytes(n_steps, memory):
    """Return the most bytes that are held for backward at any time."""
    held = most = 0

    def pack(tensor):
        nonlocal held, most
        size = tensor.numel() * tensor.element_size()
        held += size
        most = max(most, held)
        return Held(tensor, size)

    class Held:
        def __init__(self, tensor, size):
            self.tensor, self.size = tensor, size

        def __del__(self):
            nonlocal held
            held -= self.size

    table = SAMPLERS["edict"](make_grid(make_schedule(), n_steps))
    x = make_noise()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        differentiate(table, make_smooth_net(), (x, x), square_loss, memory)
        gc.collect()
    return most


def test_bytes_held_for_backward_do_not_grow_with_the_steps():
    few, many = saved_bytes(10, "reversible"), saved_bytes(200, "reversible")
    assert few > 0
    assert abs(many - few) <= 0.01 * few
    assert saved_bytes(200, "full") > 10 * saved_bytes(10, "full")


def test_a_half_precision_network_does_not_underflow():
    inner = make_smooth_net(dtype=torch.float32)
    table = SAMPLERS["bdia"](make_grid(make_schedule(), 20))
    x = make_noise()

    def half(x, t):
        return inner(x.half().float(), t).half()

    def faint(x_0):
        return 1e-9 * square_loss(x_0)[0], None

    exact = differentiate(table, inner, (x, x), faint).pair
    found = differentiate(table, half, (x, x), faint).pair
    cosine = torch.cosine_similarity(torch.cat(exact).flatten(), torch.cat(found).flatten(), dim=0)
    assert cosine > 0.999


def test_a_sample_has_the_same_gradient_alone_and_in_a_batch():
    table = SAMPLERS["edict"](make_grid(make_schedule(), 10))
    net, x = make_smooth_net(dtype=torch.float32), make_noise(b=4)
    together = differentiate(table, net, (x, x), square_loss).pair
    for k in range(4):
        alone = differentiate(table, net, (x[k : k + 1], x[k : k + 1]), square_loss).pair
        assert relative(alone, [g[k : k + 1] for g in together]) < 1e-5


def test_the_bytes_of_a_call_are_those_of_its_intermediate_results():
    """exp keeps its result, sin its input; x and the weight are there anyhow."""
    weight, x = torch.ones(4, 4, dtype=torch.float64), make_noise()
    bytes_per_call = count_saved_bytes(lambda x, t: (weight * x).exp().sin(), x, 500)
    assert bytes_per_call == x.nbytes


def test_auto_keeps_a_small_graph_and_inverts_only_where_rounding_stays_harmless():
    schedule = make_schedule()
    assert choose_memory(SAMPLERS["edict"](make_grid(schedule, 50))) == "reversible"
    assert choose_memory(SAMPLERS["ddim"](make_grid(schedule, 50))) == "checkpoint"
    assert choose_memory(SAMPLERS["bdia"](make_grid(schedule, 20)), "auto", 2**24) == "full"
    assert choose_memory(SAMPLERS["bdia"](make_grid(schedule, 40)), "auto", 2**24) == "reversible"
    with pytest.raises(ValueError, match="memory=reversible: sampler=ddim"):
        choose_memory(SAMPLERS["ddim"](make_grid(schedule, 5)), "reversible")
    with pytest.raises(ValueError, match="memory=none: must be one of"):
        choose_memory(SAMPLERS["ddim"](make_grid(schedule, 5)), "none")
