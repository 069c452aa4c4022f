"""Train the classifier of noisy latents of the embedded model on classifier A's drawings.

Latents of the auto-encoder get noise of the denoiser's own schedule, all timesteps alike; the
classes are those of `sets/classes.txt`, as the other classifiers'. Half B measures.

    python scripts/embedded/train_noise_aware.py --seconds 180
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from hardening import load_vae
from pictures import (
    ASSETS,
    Clock,
    Composer,
    averaged_state,
    choose_device,
    compose_plain,
    descend,
    draw_examples,
    follow,
    jitter_colours,
    load_drawings,
    read_set,
    schedule,
    set_rate,
    soften,
    write_json,
)
from safetensors.torch import save_file
from train_classifier import class_indices

from doodl_cli.models.locate import find_noise_aware
from doodl_cli.models.noise_aware import NoisyClassifier
from doodl_cli.models.scheduler import read_schedule, read_settings

WIDTHS = [48, 96, 128]
MEASURED_AT = (0, 200, 400, 600, 800)  # timesteps


@torch.no_grad()
def encode(vae, picture: torch.Tensor) -> torch.Tensor:
    """Return the latents (b, c, h, w), float32, of pictures in [0, 1]."""
    z = vae.encode(2 * picture.to(vae.dtype) - 1).latent_dist.mode()
    return z.float() * vae.config.scaling_factor


def add_noise(z: torch.Tensor, alpha_bar: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return x_t = alpha z + sigma eps at timesteps (b,)."""
    a = alpha_bar[t].view(-1, 1, 1, 1)
    return a.sqrt() * z + (1 - a).sqrt() * torch.randn_like(z)


def main() -> None:
    """Train, measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("build/emoji"))
    parser.add_argument("--out", type=Path, help="by default where the model looks for it")
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    settings, weights = find_noise_aware(ASSETS, args.out)
    device = choose_device(args.smoke)
    torch.set_float32_matmul_precision("high")
    if args.smoke:
        args.batch = 16
    clock = Clock(args.seconds, 3 if args.smoke else None)
    drawings, rows, means = load_drawings(args.data, device)
    labels = [line.split("\t")[0] for line in read_set("classes.txt")]
    found, target = class_indices(rows, split="train", class_half="A")
    number = dict(zip(found, target, strict=True))
    n = 200 if args.smoke else 100_000
    examples = draw_examples(rows, means, found, n, 9, several=0.0)
    compose = Composer(drawings, examples)
    targets = torch.tensor([number[i] for i in examples.items[:, 0]]).to(device)
    vae = load_vae(ASSETS / "vae", device)
    alpha_bar = torch.tensor(
        read_schedule(read_settings(ASSETS / "scheduler/scheduler_config.json")).alpha_bar
    ).to(device)
    config = {"in_channels": vae.config.latent_channels, "widths": WIDTHS, "labels": labels}
    model = NoisyClassifier(**config).to(device).train()
    parameters = list(model.parameters())
    print(f"{sum(p.numel() for p in parameters) / 1e6:.2f} M parameters, {len(found)} drawings of "
          f"{len(labels)} classes", flush=True)  # fmt: skip
    averages = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.AdamW(
        parameters, args.rate, betas=(0.9, 0.98), weight_decay=0.1, fused=device == "cuda"
    )
    while (share := clock.share()) < 1:
        set_rate(optimiser, args.rate * schedule(share, 0.06))
        at = torch.randint(n, (args.batch,), device=device)
        picture = compose(at, augmented=0.9, scale=(0.6, 1.05), shift=8, degrees=15)
        picture = soften(jitter_colours(picture, 0.35), noise=0.1, blur=0.5)
        mirrored = torch.rand(len(picture), 1, 1, 1, device=device) < 0.5
        z = encode(vae, torch.where(mirrored, picture.flip(3), picture))
        t = torch.randint(len(alpha_bar), (len(z),), device=device)
        with torch.autocast(device, torch.bfloat16):
            logits = model(add_noise(z, alpha_bar, t), t).float()
        loss = F.cross_entropy(logits, targets[at], label_smoothing=0.05)
        descend(optimiser, loss, parameters)
        follow(averages, parameters, min(0.998, max(0.0, 1 - 10 / (10 + clock.step))))
        if clock.log_due():
            right = (logits.argmax(1) == targets[at]).float().mean()
            print(f"{share:.3f} step {clock.step} loss {loss:.4f} accuracy {right:.3f}", flush=True)
    state = {name: p.half().cpu() for name, p in averaged_state(model, averages).items()}
    write_json(settings, config)
    save_file(state, weights)
    model.load_state_dict({name: p.float() for name, p in state.items()})
    model.eval()
    for half in "AB":
        found, target = class_indices(rows, split="train", class_half=half)
        z = encode(vae, compose_plain(drawings, found))
        shares = []
        for at in MEASURED_AT:
            t = torch.full((len(z),), at, device=device)
            with torch.no_grad():
                logits = model(add_noise(z, alpha_bar, t), t)
            shares.append((logits.argmax(1).cpu() == torch.tensor(target)).float().mean().item())
        line = ", ".join(
            f"{share:.3f} at {t}" for t, share in zip(MEASURED_AT, shares, strict=True)
        )
        print(f"accuracy on {len(found)} drawings of half {half}: {line}", flush=True)
    print(f"steps {clock.step}, {weights.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
