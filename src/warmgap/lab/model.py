"""LLaMA models by name, and two small models of images, with random weights from a seed; nothing is downloaded."""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class Size:
    """The shape of a LLaMA model, and what it is trained with by default (the last three)."""

    layers: int
    width: int  # of the residual stream
    hidden: int  # width inside the feed-forward network
    heads: int
    tied: bool  # whether input and output embeddings are one matrix
    vocab_size: int  # 257: bytes without merges
    sequence_length: int  # in tokens

    def parameters(self, vocab_size: int | None = None, *, tied: bool | None = None) -> int:
        """Number of parameters, with the usual vocabulary and tying or with those given."""
        block = 4 * self.width**2 + 3 * self.width * self.hidden + 2 * self.width
        tables = 1 if (self.tied if tied is None else tied) else 2
        return self.layers * block + self.width + tables * (vocab_size or self.vocab_size) * self.width


SIZES = {
    "tiny": Size(layers=2, width=64, hidden=172, heads=2, tied=False, vocab_size=257, sequence_length=64),
    "mini": Size(layers=4, width=128, hidden=344, heads=4, tied=False, vocab_size=1024, sequence_length=128),
    "small": Size(layers=6, width=256, hidden=688, heads=8, tied=False, vocab_size=4096, sequence_length=256),
    "medium": Size(layers=8, width=512, hidden=1376, heads=8, tied=True, vocab_size=16384, sequence_length=512),
    "124m": Size(layers=12, width=768, hidden=2048, heads=12, tied=True, vocab_size=50304, sequence_length=512),
    "210m": Size(layers=24, width=768, hidden=2048, heads=12, tied=True, vocab_size=50304, sequence_length=512),
}
"""Sizes by name. `124m` and `210m` are the two of arXiv 2602.05813's experiments."""


def size_of(name: str) -> Size | None:
    """The shape of a LLaMA by its name in `SIZES`, or by layers x width such as `6x512`; None for no such name.

    One by layers and width has heads of 64 (32 below a width of 128) and a feed-forward network 8/3 as wide.
    """
    if name in SIZES:
        return SIZES[name]
    layers, cross, width = name.partition("x")
    if not (cross and layers.isdecimal() and width.isdecimal() and int(layers) and int(width) and int(width) % 32 == 0):
        return None
    wide = int(width)
    heads = wide // (32 if wide < 128 or wide % 64 else 64)
    return Size(int(layers), wide, round(wide * 8 / 3 / 8) * 8, heads, tied=False, vocab_size=4096, sequence_length=128)


DIGITS = "digits"
"""The corpus of images."""

IMAGE_MODELS = ("mlp", "convnet")
"""The models that learn it."""


def build_model(name: str, *, vocab_size: int, sequence_length: int, tied: bool, seed: int) -> "LlamaForCausalLM":
    """A LLaMA of a size that `size_of` knows, with random weights, a function of the arguments alone.

    `sequence_length` is the longest sequence in tokens. The global random state is left as it was.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = size_of(name)
    if size is None:
        raise ValueError(f"model must be one of {', '.join(SIZES)} or layers x width such as 6x512, got {name!r}")
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=size.width,
        intermediate_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        max_position_embeddings=sequence_length,
        tie_word_embeddings=tied,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def build_image_model(name: str, *, seed: int) -> "nn.Module":
    """A model of `IMAGE_MODELS`, from 64 pixels to 10 classes, a function of the arguments alone.

    `mlp` has three hidden layers of 128, `convnet` three convolutions of 32 channels; ReLU between.
    """
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "mlp":
            widths = (64, 128, 128, 128, 10)
            layers = [nn.Linear(before, after) for before, after in itertools.pairwise(widths)]
            return nn.Sequential(*(module for layer in layers[:-1] for module in (layer, nn.ReLU())), layers[-1])
        convolutions = [nn.Conv2d(before, 32, 3, padding=1) for before in (1, 32, 32)]
        body = [module for layer in convolutions for module in (layer, nn.ReLU())]
        return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *body, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 10))
