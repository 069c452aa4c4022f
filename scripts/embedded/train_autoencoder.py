"""Train the autoencoder of the embedded model: 64 px pictures to 8 x 16 x 16 latents.

A picture's loss is L1 + 0.5 gradient L1 + 0.5 MSE + 0.1 log(MSE + 1e-4): the logarithm is the
PSNR, so that every picture counts alike. A tiny KL keeps the posterior honest, a penalty keeps
each latent channel at mean 0 and standard deviation 1, and noise on the latents makes the decoder
tolerant of what a diffusion model draws.

    python scripts/embedded/train_autoencoder.py --out build/emoji/model/vae --seconds 210
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from pictures import (
    Clock,
    Composer,
    averaged_state,
    choose_device,
    compose_plain,
    descend,
    draw_examples,
    follow,
    indices_where,
    load_drawings,
    schedule,
    set_rate,
    unseen_indices,
)

LATENT_NOISE = 0.05  # of the latents' standard deviation
KL_WEIGHT = 1e-5
UNIT_WEIGHT = 1e-2


def build_autoencoder() -> AutoencoderKL:
    """Return an untrained autoencoder."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=32,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def autoencoder_loss(model, picture, eps, noise):
    """Return the loss and the mean squared errors (b,) of pictures (b, 3, h, w) in [-1, 1]."""
    mean, logvar = model.encoder(picture).float().chunk(2, 1)
    logvar = logvar.clamp(-20, 10)
    std = mean.std((0, 2, 3), keepdim=True)
    z = mean + torch.exp(0.5 * logvar) * eps + LATENT_NOISE * std.detach() * noise
    decoded = model.decoder(z).float()
    # The loss is meant for pictures in [0, 1].
    error = (decoded - picture) / 2
    across, down = error.diff(dim=3).abs().mean((1, 2, 3)), error.diff(dim=2).abs().mean((1, 2, 3))
    mse = error.square().mean((1, 2, 3))
    loss = error.abs().mean((1, 2, 3)) + 0.5 * (across + down) + 0.5 * mse
    loss = (loss + 0.1 * torch.log(mse + 1e-4)).mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    unit = mean.mean((0, 2, 3)).square().mean() + torch.log(std + 1e-4).square().mean()
    return loss + KL_WEIGHT * kl + UNIT_WEIGHT * unit, mse


@torch.no_grad()
def mean_psnr(model, picture: torch.Tensor) -> float:
    """Return the mean over pictures of the PSNR (dB) of 8-bit reconstructions."""
    errors = []
    for part in picture.split(100):
        decoded = model.decode(model.encode(2 * part - 1).latent_dist.mean).sample
        decoded = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round() / 255
        errors.append((decoded - part).square().mean((1, 2, 3)))
    return (-10 * torch.log10(torch.cat(errors).clamp(min=1e-10))).mean().item()


@torch.no_grad()
def latent_moments(model, compose, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the per-channel mean and standard deviation of latents."""
    at = torch.arange(n, device=compose.items.device)
    z = torch.cat([model.encode(2 * compose(part) - 1).latent_dist.mean for part in at.split(250)])
    return z.mean((0, 2, 3)), z.std((0, 2, 3))


def main() -> None:
    """Train, measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("build/emoji"))
    parser.add_argument("--out", type=Path, default=Path("build/emoji/model/vae"))
    parser.add_argument("--seconds", type=float, default=210)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    device = choose_device(args.smoke)
    torch.set_float32_matmul_precision("high")
    if args.smoke:
        args.batch = 4
    clock = Clock(args.seconds, 3 if args.smoke else None)
    drawings, rows, means = load_drawings(args.data, device)
    train = indices_where(rows, split="train")
    examples = draw_examples(rows, means, train, 200 if args.smoke else 200_000, seed=1)
    compose = Composer(drawings, examples)
    model = AutoencoderKL.from_pretrained(args.out) if args.resume else build_autoencoder()
    model = model.float().to(device, memory_format=torch.channels_last).train()
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    parameters = list(model.parameters())
    averages = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.AdamW(
        parameters, args.rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=device == "cuda"
    )
    loss_function = autoencoder_loss if args.smoke else torch.compile(autoencoder_loss)
    while (share := clock.share()) < 1:
        set_rate(optimiser, args.rate * schedule(share))
        at = torch.randint(len(examples.captions), (args.batch,), device=device)
        picture = (2 * compose(at) - 1).contiguous(memory_format=torch.channels_last)
        eps, noise = torch.randn(2, args.batch, 8, 16, 16, device=device)
        with torch.autocast(device, torch.bfloat16):
            loss, mse = loss_function(model, picture, eps, noise)
        descend(optimiser, loss, parameters)
        follow(averages, parameters, min(0.999, 1 - 1 / (1 + clock.step / 5)))
        if clock.log_due():
            psnr = (-10 * torch.log10(mse.detach() + 1e-10)).mean()
            print(f"{share:.3f} step {clock.step} loss {loss:.4f} psnr {psnr:.2f}", flush=True)
    state = averaged_state(model, averages)
    model = build_autoencoder().to(device)
    model.load_state_dict(state)
    # Measure what is saved: weights rounded to half precision, computed in float32.
    model = model.half().float().eval().requires_grad_(False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    mean, std = latent_moments(model, compose, 200 if args.smoke else 4000)
    print("latent means", mean.cpu().numpy().round(3), "stds", std.cpu().numpy().round(3))
    model.register_to_config(scaling_factor=round(1 / std.square().mean().sqrt().item(), 4))
    unseen = unseen_indices(rows)[: 4 if args.smoke else None]
    print(f"steps {clock.step} unseen PSNR {mean_psnr(model, compose_plain(drawings, unseen)):.2f}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(args.out)
    (args.out / "done").touch()


if __name__ == "__main__":
    main()
