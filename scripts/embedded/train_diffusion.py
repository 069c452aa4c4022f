"""Train the latent diffusion model of the embedded model: UNet and text encoder, jointly.

The UNet predicts v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (Salimans and Ho 2022) under
Stable Diffusion's betas, weighted by min(snr, 5) / (snr + 1) (Hang et al. 2023). Latents of a
large pool of captioned pictures are computed once. The result is a diffusers pipeline folder.

    python scripts/embedded/train_diffusion.py --out doodl_cli/assets/emoji --seconds 600
"""

import argparse
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from pictures import (
    ASSETS,
    N_TOKENS,
    Clock,
    Composer,
    averaged_state,
    choose_device,
    draw_examples,
    follow,
    indices_where,
    load_drawings,
    schedule,
    set_rate,
    tokenise,
    write_json,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WIDTHS, WIDTH_TEXT = (64, 128, 160), 192
EMPTIED = 0.2  # of the captions that leave the background open
MAX_SNR = 5.0


def build_unet() -> UNet2DConditionModel:
    """Return an untrained UNet."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=WIDTHS,
        layers_per_block=1,
        cross_attention_dim=WIDTH_TEXT,
        attention_head_dim=(2, 4, 5),
        norm_num_groups=32,
    )


def build_text_encoder(tokenizer) -> CLIPTextModel:
    """Return an untrained text encoder."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH_TEXT,
            intermediate_size=4 * WIDTH_TEXT,
            projection_dim=WIDTH_TEXT,
            num_hidden_layers=4,
            num_attention_heads=6,
            max_position_embeddings=N_TOKENS,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_scheduler() -> DDIMScheduler:
    """Return the scheduler whose configuration says how the model was trained."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=0,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )


def diffusion_loss(unet, text_encoder, x_0, eps, t, ids, alpha_bar):
    """Return the weighted loss of v-prediction on latents (b, c, h, w)."""
    a = alpha_bar[t][:, None, None, None]
    x_t = a.sqrt() * x_0 + (1 - a).sqrt() * eps
    v = a.sqrt() * eps - (1 - a).sqrt() * x_0
    text = text_encoder(ids)[0]
    predicted = unet(x_t, t, text, return_dict=False)[0].float()
    snr = a / (1 - a)
    weight = snr.clamp(max=MAX_SNR) / (snr + 1)
    return (weight * (predicted - v).square()).mean()


@torch.no_grad()
def encode_pool(vae, compose, n: int, device: str) -> torch.Tensor:
    """Return scaled latents (n, 8, 16, 16) of the first `n` examples, in half precision."""
    pool = torch.empty(n, 8, 16, 16, dtype=torch.float16, device=device)
    vae = vae.to(device, torch.bfloat16 if device == "cuda" else torch.float32)
    vae = vae.to(memory_format=torch.channels_last)
    for at in torch.arange(n, device=device).split(1024):
        picture = (2 * compose(at) - 1).to(vae.dtype).contiguous(memory_format=torch.channels_last)
        z = vae.encoder(picture)[:, : pool.shape[1]]
        pool[at] = (z * vae.config.scaling_factor).half()
    return pool


def save_pipeline(out: Path, unet_state, text_state, tokenizer) -> None:
    """Write the pipeline folder but for vae/ and tokenizer/, which are there already."""
    unet, text_encoder = build_unet(), build_text_encoder(tokenizer)
    unet.load_state_dict(unet_state)
    text_encoder.load_state_dict(text_state)
    unet.half().save_pretrained(out / "unet")
    text_encoder.half().save_pretrained(out / "text_encoder")
    build_scheduler().save_pretrained(out / "scheduler")
    write_json(
        out / "model_index.json",
        {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.42.1",
            "feature_extractor": [None, None],
            "image_encoder": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", "DDIMScheduler"],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("build/emoji"))
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--vae", type=Path, help="the autoencoder; by default vae/ in --out")
    parser.add_argument("--tokenizer", type=Path, default=ASSETS / "tokenizer")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--pool", type=int, default=400_000)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--graph", action="store_true", help="replay the step as a CUDA graph")
    parser.add_argument("--part", type=float, nargs=2, default=(0, 1), help="of the whole cosine")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    device = choose_device(args.smoke)
    torch.set_float32_matmul_precision("high")
    if args.smoke:
        args.batch, args.pool = 4, 64
    clock = Clock(args.seconds, 3 if args.smoke else None)
    tokenizer = CLIPTokenizer.from_pretrained(args.tokenizer)
    drawings, rows, means = load_drawings(args.data, device)
    train = indices_where(rows, split="train")
    examples = draw_examples(rows, means, train, args.pool, seed=args.seed)
    pool_ids = tokenise(tokenizer, examples.captions).to(device)
    empty = tokenise(tokenizer, [""]).to(device)
    # Only captions that leave the background open are emptied, so that guidance, which pushes
    # away from the empty caption, does not push the background.
    emptied = torch.from_numpy(~examples.said).to(device)[:, None] * EMPTIED
    print(f"{time.time() - clock.start:.0f} s: captions", flush=True)

    unet, text_encoder = build_unet(), build_text_encoder(tokenizer)
    if args.resume:
        unet = UNet2DConditionModel.from_pretrained(args.out / "unet").float()
        text_encoder = CLIPTextModel.from_pretrained(args.out / "text_encoder").float()
    unet = unet.to(device, memory_format=torch.channels_last).train()
    text_encoder = text_encoder.to(device).train()
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    n_unet = len(list(unet.parameters()))
    for name, network in (("UNet", unet), ("text encoder", text_encoder)):
        print(f"{name} {sum(p.numel() for p in network.parameters()) / 1e6:.3f} M", flush=True)
    averages = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.AdamW(
        parameters, args.rate, betas=(0.9, 0.99), weight_decay=1e-2, fused=device == "cuda"
    )
    alpha_bar = build_scheduler().alphas_cumprod.to(device)
    loss_function = diffusion_loss if args.smoke else torch.compile(diffusion_loss)
    batch = args.batch
    x_0 = torch.randn(batch, 8, 16, 16, device=device).contiguous(memory_format=torch.channels_last)
    eps, t = torch.randn_like(x_0), torch.zeros(batch, dtype=torch.long, device=device)
    ids = empty.repeat(batch, 1)

    def compute_gradients():
        with torch.autocast(device, torch.bfloat16):
            loss = loss_function(unet, text_encoder, x_0, eps, t, ids, alpha_bar)
        loss.backward()
        return loss.detach()

    # Compile before the autoencoder is needed: it may still be in training beside this program.
    compute_gradients()
    optimiser.zero_grad()
    print(f"{time.time() - clock.start:.0f} s: compiled", flush=True)
    vae_folder = args.vae or args.out / "vae"
    while not (vae_folder / "done").exists() and args.vae is not None:
        time.sleep(1)
    vae = AutoencoderKL.from_pretrained(vae_folder)
    pool = encode_pool(vae, Composer(drawings, examples), args.pool, device)
    print(
        f"{time.time() - clock.start:.0f} s: pool, std {pool[:4000].float().std():.3f}", flush=True
    )
    del vae, drawings
    replay = None
    if args.graph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                optimiser.zero_grad()
                compute_gradients()
        torch.cuda.current_stream().wait_stream(stream)
        optimiser.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            graph_loss = compute_gradients()
        replay = (graph, graph_loss)

    total, timed_at, timed_step = torch.zeros((), device=device), time.time(), 0
    while (share := clock.share()) < 1:
        overall = args.part[0] + (args.part[1] - args.part[0]) * share
        warm = min(1.0, share / 0.03 + 0.01)
        set_rate(optimiser, args.rate * warm * schedule(overall, 1e-3))
        at = torch.randint(args.pool, (batch,), device=device)
        x_0.copy_(pool[at])
        eps.normal_()
        t.random_(0, 1000)
        ids.copy_(
            torch.where(torch.rand(batch, 1, device=device) < emptied[at], empty, pool_ids[at])
        )
        if replay is None:
            optimiser.zero_grad()
            loss = compute_gradients()
        else:
            replay[0].replay()
            loss = replay[1]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        # A horizon that grows with the steps taken: at most 0.9995.
        follow(averages, parameters, min(0.9995, max(0.0, 1 - 10 / (10 + clock.step))))
        total += loss
        if clock.log_due() or share == 1:
            steps = max(1, clock.step - timed_step)
            pace = (time.time() - timed_at) / steps * 1e3
            progress = f"{time.time() - clock.start:.0f} s share {share:.3f} step {clock.step}"
            print(f"{progress} loss {total.item() / steps:.4f} {pace:.1f} ms a step", flush=True)
            timed_at, timed_step = time.time(), clock.step
            total.zero_()
    save_pipeline(
        args.out,
        averaged_state(unet, averages[:n_unet]),
        averaged_state(text_encoder, averages[n_unet:]),
        tokenizer,
    )
    print(f"steps {clock.step}, {time.time() - clock.start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
