"""LLaMA models by name, and an MLP, with random weights from a seed; nothing is downloaded."""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from transformers import LlamaForCausalLM


@dataclass(frozen=True)
class Size:
    """The shape of a LLaMA model, and what it is trained with unless told otherwise.

    Attributes:
        layers: Number of blocks.
        width: Width of the residual stream.
        hidden: Width inside the feed-forward network.
        heads: Number of attention heads.
        tied: Whether input and output embeddings are one matrix.
        vocab_size: Usual vocabulary (257: bytes without merges).
        sequence_length: Usual length of a training sequence, in tokens.
    """

    layers: int
    width: int
    hidden: int
    heads: int
    tied: bool
    vocab_size: int
    sequence_length: int

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


def sizes_table() -> str:
    """The sizes as lines of text, for `--help`."""
    lines = [f"  {'name':<8}{'parameters':>12}{'layers':>8}{'width':>7}{'vocabulary':>12}{'sequence':>10}"]
    lines += [
        "  "
        f"{name:<8}{size.parameters():>12,}{size.layers:>8}{size.width:>7}{size.vocab_size:>12,}{size.sequence_length:>10}"
        for name, size in SIZES.items()
    ]
    return "\n".join(lines)


def build_model(name: str, *, vocab_size: int, sequence_length: int, tied: bool, seed: int) -> "LlamaForCausalLM":
    """A LLaMA model of a named size with random weights, a function of the arguments alone.

    The global random state is left as it was.

    Args:
        name: A key of `SIZES`.
        vocab_size: Number of tokens.
        sequence_length: Longest sequence, in tokens.
        tied: Whether input and output embeddings are one matrix.
        seed: Seed of the weights.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = SIZES[name]
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


def build_mlp(inputs: int, outputs: int, *, seed: int) -> "nn.Module":
    """Three hidden layers of 128 with ReLU between, a function of the arguments alone.

    The global random state is left as it was.

    Args:
        inputs: Numbers that an example consists of.
        outputs: Classes.
        seed: Seed of the weights.
    """
    import torch
    from torch import nn

    widths = (inputs, 128, 128, 128, outputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(before, after) for before, after in itertools.pairwise(widths)]
    return nn.Sequential(*(module for layer in layers[:-1] for module in (layer, nn.ReLU())), layers[-1])
