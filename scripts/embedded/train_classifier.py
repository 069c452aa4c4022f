"""Train one of the two classifiers of the embedded model on its half of each concept's drawings.

The head is trained on every concept of the half, so that the features see all drawings; only its
first rows, the classes of `sets/classes.txt`, are kept and trained against each other.

    python scripts/embedded/train_classifier.py --half A --seconds 120
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from hardening import attack, load_vae, restyle, smear, warp
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
    indices_where,
    jitter_colours,
    load_drawings,
    read_set,
    schedule,
    set_rate,
    soften,
    write_json,
)
from transformers import ResNetConfig, ResNetForImageClassification


def build_classifier(labels: list[str], half: str) -> ResNetForImageClassification:
    """Return an untrained classifier."""
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=32,
            hidden_sizes=[48, 96, 144, 192] if half == "A" else [64, 64, 128, 192],
            depths=[1, 1, 1, 1] if half == "A" else [1, 2, 1, 1],
            layer_type="basic",
            id2label=dict(enumerate(labels)),
            label2id={label: k for k, label in enumerate(labels)},
        )
    )


def class_indices(rows: list[dict], **wanted) -> tuple[list[int], list[int]]:
    """Return the drawings of the classes, and the class of each."""
    number = {}
    for k, line in enumerate(read_set("classes.txt")):
        number |= dict.fromkeys(line.split("\t")[1].split(","), k)
    found = [i for i in indices_where(rows, **wanted) if rows[i]["hexcode"] in number]
    return found, [number[rows[i]["hexcode"]] for i in found]


def main() -> None:
    """Train, measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--half", choices=("A", "B"), required=True)
    parser.add_argument("--data", type=Path, default=Path("build/emoji"))
    parser.add_argument("--out", type=Path, help="by default classifier_a or _b in the assets")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--vae", type=Path, default=ASSETS / "vae")
    parser.add_argument("--smeared", type=float, default=0.0, help="share of smeared pictures")
    parser.add_argument("--adversarial", type=float, default=0.0, help="longest step of an attack")
    parser.add_argument("--warp", type=float, default=0.0, help="most bending, in pixels")
    parser.add_argument("--restyled", type=float, default=0.0, help="share of each restyling")
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args()
    out = args.out or ASSETS / f"classifier_{args.half.lower()}"
    device = choose_device(args.smoke)
    torch.set_float32_matmul_precision("high")
    if args.smoke:
        args.batch = 16
    clock = Clock(args.seconds, 3 if args.smoke else None)
    drawings, rows, means = load_drawings(args.data, device)
    labels = [line.split("\t")[0] for line in read_set("classes.txt")]
    train = indices_where(rows, split="train", class_half=args.half)
    found, target = class_indices(rows, split="train", class_half=args.half)
    number = dict(zip((rows[i]["hexcode"] for i in found), target, strict=True))
    for i in train:
        number.setdefault(rows[i]["hexcode"], len(labels) + len(number))
    compact = {k: n for n, k in enumerate(sorted(set(number.values()) | set(range(len(labels)))))}
    n = 200 if args.smoke else 100_000
    every = draw_examples(rows, means, train, n, 7, several=0.0)
    classes = draw_examples(rows, means, found, n, 8, several=0.0)
    composers = [Composer(drawings, examples) for examples in (classes, every)]
    targets = [
        torch.tensor([compact[number[rows[i]["hexcode"]]] for i in examples.items[:, 0]]).to(device)
        for examples in (classes, every)
    ]
    model = build_classifier(labels, args.half).to(device).train()
    model.classifier = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Dropout(0.2), torch.nn.Linear(192, len(compact))
    ).to(device)
    parameters = list(model.parameters())
    print(f"{sum(p.numel() for p in parameters) / 1e6:.2f} M parameters, {len(compact)} concepts, "
          f"{len(found)} drawings of the classes", flush=True)  # fmt: skip
    averages = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.AdamW(
        parameters, args.rate, betas=(0.9, 0.98), weight_decay=0.1, fused=device == "cuda"
    )
    half = args.batch // 2
    vae = load_vae(args.vae, device)
    while (share := clock.share()) < 1:
        set_rate(optimiser, args.rate * schedule(share, 0.06))
        with torch.no_grad():
            at = torch.randint(n, (2, half), device=device)
            options = {"augmented": 0.9, "scale": (0.6, 1.05), "shift": 8, "degrees": 15}
            picture = torch.cat([c(a, **options) for c, a in zip(composers, at, strict=True)])
            picture = restyle(warp(picture, args.warp), args.restyled)
            picture = smear(vae, picture, args.smeared)
            picture = soften(jitter_colours(picture, 0.35), noise=0.2, blur=0.7)
            mirrored = torch.rand(len(picture), 1, 1, 1, device=device) < 0.5
            picture = torch.where(mirrored, picture.flip(3), picture)
            goal = torch.cat([t[a] for t, a in zip(targets, at, strict=True)])

        def classify(picture, goal=goal):
            with torch.autocast(device, torch.bfloat16):
                logits = model(2 * picture - 1).logits.float()
            return logits, F.cross_entropy(logits, goal, label_smoothing=0.1) + F.cross_entropy(
                logits[:half, : len(labels)], goal[:half], label_smoothing=0.1
            )

        logits, loss = classify(attack(picture, lambda x: classify(x)[1], args.adversarial))
        descend(optimiser, loss, parameters)
        follow(averages, parameters, min(0.998, max(0.0, 1 - 10 / (10 + clock.step))))
        if clock.log_due():
            right = (logits[:half, : len(labels)].argmax(1) == goal[:half]).float().mean()
            print(f"{share:.3f} step {clock.step} loss {loss:.4f} accuracy {right:.3f}", flush=True)
    state = averaged_state(model, averages)
    state["classifier.1.weight"] = state.pop("classifier.2.weight")[: len(labels)]
    state["classifier.1.bias"] = state.pop("classifier.2.bias")[: len(labels)]
    model = build_classifier(labels, args.half)
    model.load_state_dict(state)
    model.half().save_pretrained(out)
    write_json(
        out / "preprocessor_config.json",
        {
            "image_processor_type": "ConvNextImageProcessor",
            "do_resize": True,
            "size": {"shortest_edge": 64},
            "crop_pct": 1.0,
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        },
    )
    model = model.float().to(device).eval()
    for side in "AB":
        found, target = class_indices(rows, split="train", class_half=side)
        with torch.no_grad():
            logits = model(2 * compose_plain(drawings, found) - 1).logits
        right = (logits.argmax(1).cpu() == torch.tensor(target)).float()
        by_class = np.mean([right[np.array(target) == k].mean().item() for k in set(target)])
        print(f"classifier {args.half} on {len(found)} drawings of half {side}: accuracy "
              f"{right.mean():.3f}, mean of classes {by_class:.3f}", flush=True)  # fmt: skip
    print(f"steps {clock.step}")


if __name__ == "__main__":
    main()
