"""Prompts to what a UNet is conditioned on: by one CLIP text encoder, or by two as SDXL's.

Stable Diffusion takes the last hidden states (Rombach et al. 2022). SDXL takes the penultimate
ones of both encoders side by side, and the pooled output of the second besides (Podell et al. 2023,
arXiv 2307.01952, section 2.1).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Embedding(NamedTuple):
    """`states` (b, tokens, d) of b texts and, where the UNet asks for it, `pooled` (b, d')."""

    states: Tensor
    pooled: Tensor | None = None


@dataclass(frozen=True)
class OneEncoder:
    """The text encoder of Stable Diffusion 1 and 2."""

    encoder: Any
    tokenizer: Any

    @property
    def networks(self) -> tuple[Any, ...]:
        return (self.encoder,)

    @property
    def n_tokens(self) -> int:
        """How long a text may be."""
        return self.tokenizer.model_max_length - 2

    def cut(self, text: str) -> str:
        """Return the end of a text that is too long."""
        return cut_off(self.tokenizer, text)

    def __call__(self, texts: list[str]) -> Embedding:
        tokens = tokenize(self.tokenizer, texts).to(self.encoder.device)
        mask = tokens["attention_mask"] if use_mask(self.encoder) else None
        return Embedding(self.encoder(tokens["input_ids"], mask).last_hidden_state)


@dataclass(frozen=True)
class TwoEncoders:
    """The text encoders of SDXL. `zero_for_none`: an empty negative prompt gives zeros."""

    encoders: tuple[Any, Any]
    tokenizers: tuple[Any, Any]
    zero_for_none: bool

    @property
    def networks(self) -> tuple[Any, ...]:
        return self.encoders

    @property
    def n_tokens(self) -> int:
        """How long a text may be."""
        return self.tokenizers[0].model_max_length - 2

    def cut(self, text: str) -> str:
        """Return the end of a text that is too long."""
        return cut_off(self.tokenizers[0], text)

    def __call__(self, texts: list[str]) -> Embedding:
        outs = [
            encoder(
                tokenize(tokenizer, texts)["input_ids"].to(encoder.device),
                output_hidden_states=True,
            )
            for encoder, tokenizer in zip(self.encoders, self.tokenizers, strict=True)
        ]
        return Embedding(
            torch.cat([out.hidden_states[-2] for out in outs], -1), outs[1].text_embeds
        )

    def negative(self, texts: list[str]) -> Embedding:
        """Return the embedding of negative prompts."""
        states, pooled = self(texts)
        assert pooled is not None
        given = [not self.zero_for_none or text != "" for text in texts]
        keep = torch.tensor(given).to(states)
        return Embedding(states * keep[:, None, None], pooled * keep[:, None])


def tokenize(tokenizer: Any, texts: list[str]) -> Any:
    """Return the tokens of texts; words beyond the length of the encoder are cut."""
    length = tokenizer.model_max_length
    return tokenizer(
        texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    )


def cut_off(tokenizer: Any, text: str) -> str:
    """Return the end of a text that is too long, which `tokenize` cuts."""
    ids, length = tokenizer(text)["input_ids"], tokenizer.model_max_length
    return tokenizer.decode(ids[length - 1 : -1]) if len(ids) > length else ""


def use_mask(encoder: Any) -> bool:
    return bool(getattr(encoder.config, "use_attention_mask", False))
