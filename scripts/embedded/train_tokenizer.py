"""Train the byte-level BPE of the embedded model on captions; write a CLIPTokenizer folder.

python scripts/embedded/train_tokenizer.py --out doodl_cli/assets/emoji/tokenizer
"""

import argparse
import json
from pathlib import Path
from random import Random

from captions import caption, count_caption, is_countable
from pictures import ASSETS, N_TOKENS, write_json
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

START, END = "<|startoftext|>", "<|endoftext|>"


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("build/emoji"))
    parser.add_argument("--out", type=Path, default=ASSETS / "tokenizer")
    parser.add_argument("--size", type=int, default=2048)
    args = parser.parse_args()
    rows = [json.loads(line) for line in (args.data / "drawings.jsonl").read_text().splitlines()]
    rng = Random(0)
    texts = [
        caption(row, rng, "light blue" if i == 0 else None, name_vocabulary=True)
        for row in rows
        for i in range(6)
    ]
    texts += [count_caption(row, 3, rng) for row in rows if is_countable(row)]
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""),
                behavior="removed",
                invert=True,
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Two ids stay free for the start and end of text, which come last as in CLIP.
    trainer = trainers.BpeTrainer(
        vocab_size=args.size - 2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab, merges = model["vocab"], [tuple(merge) for merge in model["merges"]]
    # Every single byte needs its end-of-word form too, or a rare letter would be unknown.
    for letter in alphabet:
        vocab.setdefault(letter + "</w>", len(vocab))
    while len(vocab) > args.size - 2:
        gone = "".join(merges.pop())
        vocab.pop(gone, None)
    vocab = {word: i for i, word in enumerate(sorted(vocab, key=vocab.get))}
    vocab[START], vocab[END] = len(vocab), len(vocab) + 1
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(args.out / "vocab.json", vocab)
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (args.out / "merges.txt").write_text("\n".join(lines) + "\n")

    from transformers import CLIPTokenizer

    clip = CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
        model_max_length=N_TOKENS,
    )
    clip.save_pretrained(args.out)
    (args.out / "tokenizer.json").unlink()  # says what vocab.json and merges.txt do
    clip = CLIPTokenizer.from_pretrained(args.out)
    for text in ("A red apple", "a violin on a light blue background", "Zürich 42 ☃", ""):
        ids = clip(text).input_ids
        print(len(clip), text, ids, clip.convert_ids_to_tokens(ids), clip.decode(ids))
    longest = max(len(ids) for ids in clip(texts).input_ids)
    print("longest caption", longest)


if __name__ == "__main__":
    main()
