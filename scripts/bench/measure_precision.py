"""Compare gradients in half precision with float32's, and replayed graphs with plain evaluations.

The same random weights of Stable Diffusion 1.4's architecture, rounded to half precision; the same
sampler, start and crops; the loss is the aesthetic one by ViT-L/14. Cosine and relative error of
the gradient at x_T.

    python scripts/bench/measure_precision.py --out build/precision.jsonl "obelm 20" "edict 50"
"""

import argparse
import gc
import json
from dataclasses import replace
from pathlib import Path

import torch
from architectures import make_guidance, make_model, pose
from torch import Tensor

from doodl_cli.optimize import initial_noise
from doodl_cli.optimize.assess import Problem, assess
from doodl_cli.optimize.noise import make_generators

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


def make_problem(
    sampler: str, n_steps: int, half: torch.dtype, exact: bool, device: torch.device
) -> Problem:
    """Return the problem in half precision, or with the same weights in float32."""
    model = make_model("sd14", half, device)
    guidance = make_guidance("aesthetic", device, not exact)
    if exact:
        for network in (model.unet, model.vae, *model.text.networks):
            network.float()
    return pose(
        model, guidance, sampler=sampler, n_steps=n_steps, cfg_scale=7.5, memory="reversible"
    )


def gradient(problem: Problem) -> Tensor:
    """Return the gradient of the loss at a tied x_T, flat."""
    x_T = initial_noise([0], (4, 64, 64)).to(problem.device)
    found = assess(problem, (x_T, x_T.clone()), make_generators([0], "optimize"), True)
    assert found.gradient is not None
    return found.gradient.sum(0).flatten()


def compare_graph(problem: Problem) -> dict[str, bool]:
    """Tell whether a replayed graph gives what a plain evaluation does, bit for bit."""
    plain = replace(problem.net, captures=None)  # type: ignore[type-var]
    x = initial_noise([1], (4, 64, 64)).to(problem.device)
    results = []
    for net in (problem.net, plain):
        with torch.no_grad():
            alone = net(x, 501)
        leaf = x.clone().requires_grad_()
        out = net(leaf, 501)
        (vjp,) = torch.autograd.grad(out, leaf, torch.sign(out))
        results.append((alone, out.detach(), vjp))
    (a, b, c), (d, e, f) = results
    return {
        "replays_equal": torch.equal(a, b),
        "plain_equal": torch.equal(d, e),
        "evaluation_equal": torch.equal(a, d),
        "product_equal": torch.equal(c, f),
    }


def main() -> None:
    """Compare for every sampler and number of steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", nargs="+", help="a sampler and its number of steps")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.allow_tf32 = False  # float32 is the measure
    for setting in args.settings:
        sampler, n_steps = setting.split()
        for name, half in HALVES.items():
            found = {}
            for exact in (True, False):
                problem = make_problem(sampler, int(n_steps), half, exact, device)
                found[exact] = gradient(problem)
                graph = {} if exact else compare_graph(problem)
                del problem
                gc.collect()
                torch.cuda.empty_cache()
            line = {
                "sampler": sampler,
                "n_steps": int(n_steps),
                "dtype": name,
                "cosine": torch.cosine_similarity(found[True], found[False], 0).item(),
                "relative_error": ((found[True] - found[False]).norm() / found[True].norm()).item(),
                "norm": found[True].norm().item(),
                **graph,
                "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
            }
            with args.out.open("a") as out:
                print(json.dumps(line), file=out)
            print(line, flush=True)


if __name__ == "__main__":
    main()
