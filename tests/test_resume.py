"""A run that is cut short at any moment goes on as if there had been no break."""

import pytest
import torch

from doodl_cli.optimize import Settings, optimize
from tests.problems import brightness, make_noise, make_problem

SETTINGS = {
    "doodl": {},
    "adam": {"rule": "adam", "schedule": "cosine", "warmup": 2},
    "without momentum": {"momentum": 0.0},
    "untied": {"tied": False, "perturb": 1e-2},
    "balanced": {"balance": True},
    "stopping": {"stop_on": "darkness", "patience": 1, "lr": 30.0},
}


def same(first, second):
    """Whether two records say the same, their time aside."""
    a, b = vars(first) | {"seconds": 0}, vars(second) | {"seconds": 0}
    return all(
        torch.equal(torch.stack(a[name]), torch.stack(b[name]))
        if name == "pair"
        else torch.equal(a[name], b[name])
        if name == "images"
        else all(torch.equal(a[name][key], b[name][key]) for key in a[name] | b[name])
        if name == "state"
        else str(a[name]) == str(b[name])  # NaN is not equal to NaN
        for name in a
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_an_optimisation_goes_on_from_any_iteration_to_the_same_records(name):
    settings = Settings(n_iters=5, **SETTINGS[name])
    evaluation = {"darkness": lambda images, prompts: -brightness(images, prompts)}
    problem, x_T = make_problem([3, 5], evaluation=evaluation), make_noise(2)
    records = list(optimize(problem, settings, (x_T, x_T)))
    zero = torch.zeros_like(x_T)  # what it started from matters no more
    for k, record in enumerate(records):
        rest = list(optimize(problem, settings, (zero, zero), record.state))
        assert len(rest) == len(records) - k - 1
        assert all(same(a, b) for a, b in zip(records[k + 1 :], rest, strict=True))
