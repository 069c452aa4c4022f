"""Train one of the CLIP pairs of the embedded model, saved as an open_clip `local-dir:` folder.

Pairs A (a small ViT) and C (a small ResNet) guide; pair B (a ResNet, too, but trained on the other
half of the drawings) only ever measures. Pairs that are right by accident (the same concept, or a
group word and a member) count neither as positive nor as negative. Pair A also regresses the
colourfulness of the pixels from its normalised embedding, linearly, so that a linear head can read
it.

    python scripts/embedded/train_clip.py --pair A --seconds 150
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from generated import draw_generated
from hardening import attack, load_vae, restyle, smear, warp
from pictures import (
    ASSETS,
    N_TOKENS,
    Clock,
    Composer,
    averaged_state,
    choose_device,
    colourfulness,
    compose_plain,
    descend,
    draw_examples,
    erase,
    follow,
    indices_where,
    jitter_colours,
    join,
    load_drawings,
    read_set,
    schedule,
    set_rate,
    soften,
    tokenise,
    write_json,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from doodl_cli.models.latent_model import load_model

VISION = {
    "A": {"image_size": 64, "layers": 5, "width": 160, "head_width": 32, "patch_size": 8},
    "B": {"image_size": 64, "layers": [1, 2, 2, 1], "width": 16, "patch_size": None},
    "C": {"image_size": 64, "layers": [1, 1, 2, 2], "width": 16, "patch_size": None},
}
WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
HALVES = {"A": "A", "B": "B", "C": "A"}  # of the drawings
TEXT = {"width": 128, "heads": 4, "layers": 3}
EMBEDDING = 192
HALF = 0.5
GENERATED = 0.5  # share of the model's own pictures, where there are any


def build_clip(pair: str, vocab_size: int) -> tuple[torch.nn.Module, dict]:
    """Return an untrained model and its configuration."""
    config = {
        "embed_dim": EMBEDDING,
        "vision_cfg": VISION[pair],
        "text_cfg": {
            "context_length": N_TOKENS,
            "vocab_size": vocab_size,
            "hf_tokenizer_name": "tokenizer",
            **TEXT,
        },
    }
    # The same class as `create_model` chooses when a tokenizer is named.
    return open_clip.CLIP(**config), config


def encode_both(model, picture, ids):
    """Return normalised embeddings of pictures in [-1, 1] and of token ids."""
    return model.encode_image(picture, normalize=True), model.encode_text(ids, normalize=True)


def contrastive_loss(image, text, scale, ignored):
    """Return the symmetric cross-entropy of matching pictures to captions (b, d)."""
    logits = (scale * image.float() @ text.float().T).masked_fill(ignored, -1e4)
    target = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def retrieve(model, tokenizer, picture, target, device) -> float:
    """Return the share of pictures whose best of the 100 retrieval captions is the right one."""
    ids = tokenise(tokenizer, read_set("retrieval_captions.txt")).to(device)
    image, text = encode_both(model, 2 * picture - 1, ids)
    return ((image @ text.T).argmax(1) == target).float().mean().item()


def retrieval_pictures(rows, **wanted) -> tuple[list[int], list[int]]:
    """Return the drawings of the 100 retrieval concepts, and the concept of each."""
    concept = {line.split("\t")[1]: i for i, line in enumerate(read_set("retrieval_concepts.txt"))}
    found = [i for i in indices_where(rows, **wanted) if rows[i]["hexcode"] in concept]
    return found, [concept[rows[i]["hexcode"]] for i in found]


def save_clip(out: Path, state: dict, config: dict, tokenizer: Path) -> None:
    """Write the folder that `open_clip.create_model_from_pretrained("local-dir:...")` reads."""
    out.mkdir(parents=True, exist_ok=True)
    half = {
        k: (v.half() if v.is_floating_point() else v).contiguous().cpu() for k, v in state.items()
    }
    save_file(half, out / WEIGHTS, metadata={"format": "pt"})
    preprocess = {"mean": [HALF] * 3, "std": [HALF] * 3, "interpolation": "bicubic"}
    write_json(out / CONFIG, {"model_cfg": config, "preprocess_cfg": preprocess})
    for name in ("tokenizer_config.json", "vocab.json", "merges.txt"):
        shutil.copy(tokenizer / name, out / name)


def main() -> None:
    """Train, measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pair", choices=tuple(VISION), required=True)
    parser.add_argument("--data", type=Path, default=Path("build/emoji"))
    parser.add_argument("--out", type=Path, help="by default clip_a, ... in the assets")
    parser.add_argument("--tokenizer", type=Path, default=ASSETS / "tokenizer")
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--vae", type=Path, default=ASSETS / "vae")
    parser.add_argument("--noise", type=float, help="most Gaussian noise added")
    parser.add_argument("--smeared", type=float, default=0.0, help="share of smeared pictures")
    parser.add_argument("--adversarial", type=float, default=0.0, help="longest step of an attack")
    parser.add_argument("--warp", type=float, default=0.0, help="most bending, in pixels")
    parser.add_argument("--restyled", type=float, default=0.0, help="share of each restyling")
    parser.add_argument("--several", type=float, default=0.08, help="share of composed pictures")
    parser.add_argument("--generated", type=int, default=0, help="pictures of the model's own")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    noise = args.noise or 0.12 if args.pair == "A" else 0.2
    out = args.out or ASSETS / f"clip_{args.pair.lower()}"
    device = choose_device(args.smoke)
    torch.set_float32_matmul_precision("high")
    if args.smoke:
        args.batch = 16
    clock = Clock(args.seconds, 3 if args.smoke else None)
    tokenizer = CLIPTokenizer.from_pretrained(args.tokenizer)
    drawings, rows, means = load_drawings(args.data, device)
    train = indices_where(rows, split="train", half=HALVES[args.pair])
    pictured = rows  # of what an example's places name
    n_drawn = 200 if args.smoke else 300_000
    examples = draw_examples(rows, means, train, n_drawn, 5, args.several, name_vocabulary=True)
    if args.generated:
        base = load_model("emoji", None, torch.device(device), "float32")
        painted, sources, more = draw_generated(base, rows, means, train, args.generated, 6)
        more.items[more.items >= 0] += len(rows)
        examples = join([examples, more])
        drawings, pictured = torch.cat([drawings, painted]), [*rows, *sources]
    compose = Composer(drawings, examples)
    ids = tokenise(tokenizer, examples.captions).to(device)
    first = examples.items[:, 0]
    several = examples.items[:, 1] >= 0
    codes = {code: k for k, code in enumerate(sorted({row["hexcode"] for row in pictured}))}
    groups = {group: k for k, group in enumerate(sorted({row["group"] for row in pictured}))}
    concept = np.array([codes[row["hexcode"]] for row in pictured])[first]
    # A composed picture shares its caption only with itself.
    concept = np.where(several, len(codes) + np.arange(len(first)), concept)
    concept = torch.from_numpy(concept).to(device)
    group = torch.from_numpy(np.array([groups[row["group"]] for row in pictured])[first]).to(device)
    neutral = torch.from_numpy(examples.neutral).to(device)
    single = torch.from_numpy(~several).to(device)

    model, config = build_clip(args.pair, len(tokenizer))
    if args.resume:
        model.load_state_dict(load_file(out / WEIGHTS))
    model = model.float().to(device).train()
    colour_head = torch.nn.Linear(EMBEDDING, 1).to(device)
    names = [(n, p) for n, p in model.named_parameters()]
    print(f"{sum(p.numel() for _, p in names) / 1e6:.2f} M parameters", flush=True)
    decayed = [p for n, p in names if p.ndim > 1 and "embedding" not in n]
    others = [p for n, p in names if p.ndim <= 1 or "embedding" in n] + [*colour_head.parameters()]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.3}, {"params": others, "weight_decay": 0.0}],
        args.rate,
        betas=(0.9, 0.98),
        fused=device == "cuda",
    )
    parameters = [p for _, p in names]
    averages = [p.detach().clone() for p in parameters]
    vae = load_vae(args.vae, device)
    placed = {"scale": (0.65, 1.1), "shift": 8, "degrees": 12}
    if args.pair == "A":
        placed = {"scale": (0.7, 1.1), "shift": 6, "degrees": 8}
    # Compiling the ResNets takes minutes and gains little.
    compiled = args.pair == "A" and not args.smoke
    encode = torch.compile(encode_both) if compiled else encode_both
    while (share := clock.share()) < 1:
        set_rate(optimiser, args.rate * schedule(share, 0.06))
        at = torch.randint(n_drawn, (args.batch,), device=device)
        if args.generated:
            own = torch.randint(n_drawn, len(first), (args.batch,), device=device)
            at = torch.where(torch.rand(args.batch, device=device) < GENERATED, own, at)
        with torch.no_grad():
            picture = compose(at, augmented=0.8, **placed)
            picture = restyle(warp(picture, args.warp), args.restyled)
            if args.pair == "A":
                # Saturations beyond the drawings' own, for the colourfulness.
                coloured = jitter_colours(picture, 0.8)
                vary = torch.rand(args.batch, 1, 1, 1, device=device) < 0.25
                picture = torch.where(vary, coloured, picture)
                truth = colourfulness(picture) / 50
                picture = soften(erase(smear(vae, picture, args.smeared), 0.3), noise, 0.5)
            else:
                picture = smear(vae, jitter_colours(picture, 0.2), args.smeared)
                picture = soften(erase(picture, 0.5), noise, 0.7)
            mirrored = torch.rand(args.batch, 1, 1, 1, device=device) < 0.3
            mirrored &= single[at][:, None, None, None]
            picture = torch.where(mirrored, picture.flip(3), picture)
            same = concept[at][:, None] == concept[at][None]
            grouped = (neutral[at][:, None] | neutral[at][None]) & (
                group[at][:, None] == group[at][None]
            )
            ignored = same | grouped
            ignored.fill_diagonal_(False)

        def compare(picture, at=at, ignored=ignored):
            with torch.autocast(device, torch.bfloat16):
                image, text = encode(model, 2 * picture - 1, ids[at])
            return image, contrastive_loss(image, text, model.logit_scale.exp(), ignored)

        picture = attack(picture, lambda x: compare(x)[1], args.adversarial)
        image, loss = compare(picture)
        shown = loss.detach()
        if args.pair == "A":
            loss = loss + 0.5 * F.mse_loss(colour_head(image.float() * 8)[:, 0], truth)
        descend(optimiser, loss, parameters)
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.2)
        follow(averages, parameters, min(0.999, max(0.0, 1 - 10 / (10 + clock.step))))
        if clock.log_due():
            print(f"{share:.3f} step {clock.step} loss {shown:.4f} all {loss:.4f} scale "
                  f"{model.logit_scale.exp():.1f}", flush=True)  # fmt: skip
    state = averaged_state(model, averages)
    model, _ = build_clip(args.pair, len(tokenizer))
    model.load_state_dict({k: v.half().float() if v.is_floating_point() else v
                           for k, v in state.items()})  # fmt: skip
    model = model.to(device).eval()
    own = HALVES[args.pair]
    for half in (own, "A" if own == "B" else "B"):
        found, target = retrieval_pictures(rows, split="train", half=half)
        target = torch.tensor(target, device=device)
        picture = compose_plain(drawings, found)
        top = retrieve(model, tokenizer, picture, target, device)
        softer = retrieve(model, tokenizer, soften(picture, 0.1, 1.0), target, device)
        print(f"pair {args.pair}, {len(found)} drawings of half {half}: "
              f"top-1 {top:.3f}, softened {softer:.3f}", flush=True)  # fmt: skip
    save_clip(out, state, config, args.tokenizer)
    print(f"steps {clock.step}")


if __name__ == "__main__":
    main()
