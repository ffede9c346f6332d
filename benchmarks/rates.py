"""Final loss against peak rate: the default and the clock schedules, the decay held equal.

    python benchmarks/rates.py run OUTPUT.jsonl --suite test --seeds 0 1
    python benchmarks/rates.py table OUTPUT.jsonl
    python benchmarks/rates.py plot OUTPUT.jsonl PICTURE.png

A run that stands in OUTPUT is not made again; several processes may share the work (`--share 0/2`, `--share 1/2`).
One thread a run. The workloads of every suite but `development` were written down before any was run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy

from warmgap.decay import cosine, linear
from warmgap.torch import AdaptiveWarmup, Lion, Muon, NormalizedSGD, Signum, split_parameters


@dataclass(frozen=True)
class Workload:
    """What is learned, and an optimizer around its rate.

    Attributes:
        optimizer: A name of `OPTIMIZERS`.
        rate: The peak rate that the rates tried are multiples of: near the best of a constant.
        corpus: The text `"stdlib"` or `"wiki"`, or two `"photos"`.
        vocabulary: Tokens; 257 is bytes.
        layers: Blocks of the model.
        width: Its width; the feed-forward network of a LLaMA is 8/3 of it.
        steps: Optimizer steps.
        batch: Sequences, or patches of a photo, a step.
        length: Tokens a sequence, or pixels along a patch.
        model: `"llama"` or `"gpt2"` on text; `"autoencoder"` (an MLP) or `"denoiser"` (a convnet) on photos.
    """

    optimizer: str
    rate: float
    corpus: str = "stdlib"
    vocabulary: int = 257
    layers: int = 2
    width: int = 64
    steps: int = 300
    batch: int = 32
    length: int = 64
    model: str = "llama"

    @property
    def name(self) -> str:
        """A short name, different for every workload."""
        data = self.model if self.corpus == "photos" else f"{self.corpus}-{self.vocabulary}"
        data = f"gpt2-{data}" if self.model == "gpt2" else data
        return f"{self.optimizer}-{data}-{self.layers}x{self.width}-{self.steps}"


def long_runs(corpus: str, layers: int) -> list[Workload]:
    """LLaMAs with 4,096 tokens, trained for 1,000 steps, with four optimizers."""
    return [
        Workload(optimizer, rate, corpus, 4096, layers=layers, width=128, steps=1000, batch=8, length=96)
        for optimizer, rate in (("lion", 1e-3), ("adamw", 3e-3), ("signum", 1e-3), ("muon", 2e-2))
    ]


SUITES: dict[str, list[Workload]] = {
    "development": [
        Workload("lion", 3e-3),
        Workload("muon", 2e-2),
        Workload("adamw", 5e-3),
        Workload("signum", 3e-3),
        Workload("normalized-sgd", 0.1),
    ],
    "test": [
        Workload("lion", 3e-3, "wiki", layers=4, steps=400, batch=16),
        Workload("muon", 2e-2, "wiki", layers=4, steps=400, batch=16),
        Workload("adamw", 5e-3, "wiki", layers=6, width=48, steps=400, batch=16),
        Workload("signum", 3e-3, "stdlib", layers=3, width=80, steps=250, batch=24),
        Workload("normalized-sgd", 0.1, "stdlib", layers=3, width=80, steps=250, batch=24),
        Workload("lion", 1e-3, "stdlib", 4096, layers=2, width=128, steps=400, batch=12, length=96),
        Workload("muon", 2e-2, "stdlib", 4096, layers=2, width=128, steps=400, batch=12, length=96),
        Workload("adamw", 3e-3, "stdlib", 4096, layers=2, width=128, steps=400, batch=12, length=96),
    ],
    "sixth": [
        Workload("signum", 3e-3, "wiki", layers=4, width=64, steps=300, batch=16, model="gpt2"),
        Workload("normalized-sgd", 0.1, "wiki", layers=4, width=64, steps=300, batch=16, model="gpt2"),
        Workload("muon", 2e-2, "stdlib", layers=6, width=64, steps=300, batch=16),
        Workload("lion", 2e-3, "stdlib", 1024, layers=3, width=96, steps=300, batch=16),
        Workload("adamw", 5e-3, "wiki", layers=2, width=64, steps=120, batch=96),
        Workload("lion", 1e-3, "photos", layers=4, width=256, steps=400, batch=64, length=8, model="autoencoder"),
        Workload("muon", 2e-2, "photos", layers=4, width=256, steps=400, batch=64, length=8, model="autoencoder"),
        Workload("adamw", 3e-3, "photos", layers=5, width=32, steps=300, batch=16, length=16, model="denoiser"),
        Workload("lion", 1e-3, "photos", layers=5, width=32, steps=300, batch=16, length=16, model="denoiser"),
    ],
    "convnets": [
        Workload("muon", 2e-2, "photos", layers=3, width=48, steps=300, batch=16, length=12, model="denoiser"),
        Workload("signum", 1e-3, "photos", layers=7, width=24, steps=300, batch=16, length=12, model="denoiser"),
    ],
    "long": long_runs("wiki", 2),
    "seventh": [
        Workload("lion", 2e-3, "wiki", layers=3, width=96, steps=300, batch=16, model="gpt2"),
        Workload("signum", 2e-3, "stdlib", 1024, layers=3, width=96, steps=300, batch=16),
        Workload("adamw", 5e-3, "wiki", 512, layers=5, width=64, steps=300, batch=16),
        Workload("muon", 2e-2, "wiki", 1024, layers=4, width=96, steps=300, batch=16, model="gpt2"),
        Workload("lion", 3e-3, "stdlib", layers=8, width=48, steps=300, batch=16),
        Workload("adamw", 3e-3, "stdlib", layers=2, width=128, steps=150, batch=64, model="gpt2"),
        Workload("normalized-sgd", 0.1, "wiki", layers=3, width=64, steps=300, batch=24),
        Workload("signum", 1e-3, "photos", layers=4, width=192, steps=400, batch=64, length=8, model="autoencoder"),
        Workload("adamw", 3e-3, "photos", layers=4, width=320, steps=400, batch=64, length=10, model="autoencoder"),
        Workload("muon", 2e-2, "photos", layers=6, width=24, steps=300, batch=16, length=16, model="denoiser"),
        Workload("lion", 1e-3, "photos", layers=4, width=48, steps=300, batch=16, length=12, model="denoiser"),
        Workload("adamw", 3e-3, "photos", layers=6, width=32, steps=300, batch=16, length=12, model="denoiser"),
    ],
    "seventh-long": long_runs("stdlib", 3),
    "eighth": [
        Workload("lion", 2e-3, "wiki", 512, layers=4, width=80, steps=300, batch=16),
        Workload("signum", 2e-3, "wiki", layers=6, width=64, steps=300, batch=16, model="gpt2"),
        Workload("adamw", 3e-3, "stdlib", 1024, layers=3, width=96, steps=300, batch=16, model="gpt2"),
        Workload("muon", 2e-2, "stdlib", 512, layers=3, width=80, steps=300, batch=16),
        Workload("normalized-sgd", 0.1, "stdlib", 512, layers=4, width=64, steps=300, batch=16),
        Workload("normalized-sgd", 0.1, "stdlib", layers=3, width=80, steps=250, batch=16, model="gpt2"),
        Workload("lion", 2e-3, "wiki", 1024, layers=2, width=112, steps=200, batch=32, model="gpt2"),
        Workload("adamw", 5e-3, "stdlib", layers=10, width=48, steps=250, batch=16),
        Workload("lion", 1e-3, "photos", layers=4, width=224, steps=400, batch=48, length=9, model="autoencoder"),
        Workload("muon", 2e-2, "photos", layers=4, width=224, steps=400, batch=48, length=9, model="autoencoder"),
        Workload("signum", 1e-3, "photos", layers=5, width=40, steps=250, batch=16, length=14, model="denoiser"),
        Workload("lion", 1e-3, "photos", layers=6, width=28, steps=250, batch=16, length=14, model="denoiser"),
    ],
    "ninth": [
        Workload("lion", 2e-3, "stdlib", 512, layers=5, width=80, steps=300, batch=16),
        Workload("signum", 2e-3, "wiki", 1024, layers=3, width=80, steps=300, batch=16),
        Workload("adamw", 3e-3, "stdlib", 512, layers=6, width=64, steps=300, batch=16, model="gpt2"),
        Workload("adamw", 5e-3, "wiki", layers=4, width=80, steps=250, batch=16),
        Workload("muon", 2e-2, "wiki", 512, layers=4, width=64, steps=300, batch=16),
        Workload("normalized-sgd", 0.1, "wiki", 512, layers=3, width=80, steps=300, batch=16),
        Workload("lion", 2e-3, "wiki", layers=8, width=48, steps=200, batch=32, model="gpt2"),
        Workload("lion", 1e-3, "photos", layers=4, width=160, steps=400, batch=48, length=10, model="autoencoder"),
        Workload("adamw", 3e-3, "photos", layers=5, width=36, steps=250, batch=16, length=13, model="denoiser"),
        Workload("muon", 2e-2, "photos", layers=4, width=36, steps=250, batch=16, length=13, model="denoiser"),
    ],
    "ninth-long": long_runs("wiki", 4),
    "tenth": [
        Workload("lion", 2e-3, "stdlib", layers=3, width=64, steps=250, batch=16),
        Workload("signum", 2e-3, "wiki", layers=4, width=64, steps=250, batch=16, model="gpt2"),
        Workload("adamw", 5e-3, "wiki", 512, layers=3, width=64, steps=250, batch=16),
        Workload("adamw", 3e-3, "stdlib", layers=4, width=64, steps=250, batch=16, model="gpt2"),
        Workload("muon", 2e-2, "stdlib", 512, layers=3, width=64, steps=250, batch=16),
        Workload("normalized-sgd", 0.1, "wiki", layers=2, width=80, steps=300, batch=16),
        Workload("lion", 1e-3, "photos", layers=4, width=128, steps=300, batch=32, length=8, model="autoencoder"),
        Workload("adamw", 3e-3, "photos", layers=5, width=24, steps=300, batch=16, length=12, model="denoiser"),
    ],
    "lengths": [
        Workload(optimizer, rate, "wiki", 1024, layers=4, width=96, steps=steps, batch=16)
        for steps in (200, 800, 3200)
        for optimizer, rate in (("lion", 2e-3), ("adamw", 3e-3), ("muon", 2e-2))
    ],
    "larger": [
        Workload(optimizer, rate, "stdlib", 4096, layers=4, width=256, steps=1000, batch=8, length=96)
        for optimizer, rate in (("lion", 1e-3), ("adamw", 3e-3), ("muon", 2e-2))
    ],
}
MULTIPLES = (0.1, 1 / 3, 1.0, 3.0, 10.0)


@dataclass(frozen=True)
class Clock:
    """A schedule by step count: warm-up, then the peak, then a cosine to zero.

    Attributes:
        warmup: Share of the run that the warm-up takes.
        start: Where a geometric warm-up starts; 0 is a straight line.
        hold: Share of the run at which the decay begins.
        hidden: Whether only hidden matrices are warmed up.
        decay: A name of `DECAYS`.
    """

    warmup: float = 0.0
    start: float = 0.0
    hold: float = 0.0
    hidden: bool = False
    decay: str = "cosine"

    def factor(self, step: int, steps: int, role: str) -> float:
        """Rate over peak rate at step = 0, 1, ..."""
        begin = max(self.hold, self.warmup) * steps
        if step >= begin:
            return DECAYS[self.decay]((step - begin) / (steps - begin))
        ramp = min(1.0, (step + 1) / (self.warmup * steps + 1)) if self.warmup else 1.0
        if self.hidden and role != "hidden":
            return 1.0
        return self.start ** (1.0 - ramp) if self.start else ramp


DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": cosine(),
    "linear": linear(),
    "1 - sqrt": lambda progress: 1.0 - math.sqrt(progress),
}
CLOCKS = {
    "cosine": Clock(),
    "hold 40 %": Clock(hold=0.4),
    "hold 60 %": Clock(hold=0.6),
    "hold 80 %": Clock(hold=0.8),
    "linear 10 %": Clock(warmup=0.1),
    "linear 10 %, hold 40 %": Clock(warmup=0.1, hold=0.4),
    "linear 10 %, hold 60 %": Clock(warmup=0.1, hold=0.6),
    "linear 40 %": Clock(warmup=0.4),
    "geometric 40 %": Clock(warmup=0.4, start=0.25),
    "geometric 40 %, hidden": Clock(warmup=0.4, start=0.25, hidden=True),
    "linear 40 %, hidden": Clock(warmup=0.4, hidden=True),
    "geometric 40 %, hold 60 %": Clock(warmup=0.4, start=0.25, hold=0.6),
    "geometric 40 %, hidden, hold 60 %": Clock(warmup=0.4, start=0.25, hold=0.6, hidden=True),
    "linear 40 %, hidden, hold 60 %": Clock(warmup=0.4, hold=0.6, hidden=True),
    "linear 40 %, hidden, hold 80 %": Clock(warmup=0.4, hold=0.8, hidden=True),
    "linear 60 %, hidden": Clock(warmup=0.6, hidden=True),
}
CLOCKS |= {
    f"{name}, {decay}": replace(CLOCKS[name], decay=decay)
    for name in ("hold 60 %", "geometric 40 %, hidden, hold 60 %", "linear 40 %, hidden, hold 60 %")
    for decay in ("linear", "1 - sqrt")
}
AUTO = {"auto": "cosine", "auto, linear": "linear", "auto, 1 - sqrt": "1 - sqrt", "auto, no roles": "cosine"}
METHODS = (*CLOCKS, *AUTO)

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "lion": Lion,
    "signum": Signum,
    "muon": Muon,
    "normalized-sgd": NormalizedSGD,
    "adamw": lambda groups, **settings: torch.optim.AdamW(groups, betas=(0.9, 0.95), **settings),
}


def final_loss(workload: Workload, rate: float, method: str, seed: int) -> dict[str, Any]:
    """Train once; return the validation loss and what is to be known of the schedule."""
    model = network(workload, seed)
    batch_loss, validation_loss = (photo_losses if workload.corpus == "photos" else text_losses)(workload)
    groups = list(model.parameters()) if method == "auto, no roles" else list(split_parameters(model))
    optimizer = OPTIMIZERS[workload.optimizer](groups, lr=rate, weight_decay=0.1)
    scheduler = AdaptiveWarmup(optimizer, workload.steps, decay=DECAYS[AUTO[method]]) if method in AUTO else None
    order = np.random.default_rng(seed)
    factors: list[float] = []
    for step in range(workload.steps):
        loss = batch_loss(model, order)
        if not math.isfinite(loss.item()):
            return {"loss": math.inf, "factors": factors}
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if scheduler is None:
            for group in optimizer.param_groups:
                group["lr"] = rate * CLOCKS[method].factor(step, workload.steps, group["role"])
        else:
            scheduler.observe(loss)
        optimizer.step()
        hidden = next(group["lr"] for group in optimizer.param_groups if group.get("role", "hidden") == "hidden")
        factors.append(round(float(hidden) / rate, 4))
        if scheduler is not None:
            scheduler.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        loss_at_the_end = validation_loss(model)
    verdict = {}
    if scheduler is not None:  # and, before the decay, the mean share of a step's spectral norm under the cap
        history = scheduler._history
        verdict = {"verdict": scheduler.verdict, "share": round(history.share, 3)}
    return {"loss": loss_at_the_end, "factors": factors[:: max(1, len(factors) // 20)], **verdict}


def network(workload: Workload, seed: int) -> nn.Module:
    """The model, with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    width, layers = workload.width, workload.layers
    if workload.model == "autoencoder":
        pixels = 3 * workload.length**2
        ends = [(pixels, width), (width, width // 8), (width // 8, width), (width, pixels)]
        linear = [part for end in ends for part in (nn.Linear(*end), nn.GELU())]
        return nn.Sequential(nn.Flatten(), *linear[:-1], nn.Unflatten(1, (3, workload.length, workload.length)))
    if workload.model == "denoiser":
        ends = list(itertools.pairwise([3, *[width] * (layers - 1), 3]))
        convolutions = [part for end in ends for part in (nn.Conv2d(*end, 3, padding=1), nn.ReLU())]
        return nn.Sequential(*convolutions[:-1])
    common = {"bos_token_id": None, "eos_token_id": None, "use_cache": False, "vocab_size": workload.vocabulary}
    if workload.model == "gpt2":
        free = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        sizes = {"n_positions": workload.length, "n_embd": width, "n_layer": layers, "n_head": width // 16}
        gpt2: nn.Module = GPT2LMHeadModel(GPT2Config(**common, **sizes, **free))
        return gpt2
    config = LlamaConfig(
        **common,
        hidden_size=width,
        intermediate_size=round(width * 8 / 3 / 4) * 4,
        num_hidden_layers=layers,
        num_attention_heads=width // 16,
        max_position_embeddings=workload.length,
        tie_word_embeddings=False,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model


Losses = tuple[Callable[[nn.Module, np.random.Generator], torch.Tensor], Callable[[nn.Module], float]]


def text_losses(workload: Workload) -> Losses:
    """The loss of a batch, and the one on the validation text."""
    train, validation = tokens(workload.corpus, workload.vocabulary)

    def batch_loss(model: nn.Module, order: np.random.Generator) -> torch.Tensor:
        starts = order.integers(len(train) - workload.length - 1, size=workload.batch)
        return mean_loss(model, train, starts, workload.length)

    def validation_loss(model: nn.Module) -> float:
        starts = np.arange(0, len(validation) - workload.length - 1, workload.length)[:1024]
        starts = starts[: len(starts) // 16 * 16]
        parts = np.split(starts, 16)
        return float(np.mean([mean_loss(model, validation, part, workload.length).item() for part in parts]))

    return batch_loss, validation_loss


def photo_losses(workload: Workload) -> Losses:
    """The mean squared error of patches of two photos, and the logarithm of the one on their right fifth."""
    from sklearn.datasets import load_sample_images

    photos = [torch.tensor(photo).permute(2, 0, 1) / 64.0 - 2.0 for photo in load_sample_images().images]
    size, noise = workload.length, 0.5 if workload.model == "denoiser" else 0.0

    def patches(order: np.random.Generator, count: int, first: float, last: float) -> torch.Tensor:
        which = order.integers(2, size=count)
        rows = order.integers(photos[0].shape[1] - size, size=count)
        columns = order.integers(int(first * 640), int(last * 640) - size, size=count)
        places = zip(which, rows, columns, strict=True)
        return torch.stack([photos[i][:, row : row + size, column : column + size] for i, row, column in places])

    def error(model: nn.Module, clean: torch.Tensor, order: np.random.Generator) -> torch.Tensor:
        noisy = clean + noise * torch.from_numpy(order.standard_normal(clean.shape).astype(np.float32))
        squared: torch.Tensor = (model(noisy) - clean).square()
        return squared.mean()

    def validation_loss(model: nn.Module) -> float:
        order = np.random.default_rng(0)
        return math.log(error(model, patches(order, 1024, 0.8, 1.0), order).item())

    return lambda model, order: error(model, patches(order, workload.batch, 0.0, 0.8), order), validation_loss


_TOKENS: dict[tuple[str, int], tuple[NDArray[Any], NDArray[Any]]] = {}


def tokens(corpus: str, vocabulary: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Token numbers to train on and to validate on."""
    from warmgap.lab.corpus import load_tokens

    if (corpus, vocabulary) not in _TOKENS:
        loaded = load_tokens(corpus, vocabulary)
        train, validation = (text.windows(np.array([0]), len(text))[0] for text in (loaded.train, loaded.validation))
        _TOKENS[corpus, vocabulary] = (train, validation)
    return _TOKENS[corpus, vocabulary]


def mean_loss(model: nn.Module, text: NDArray[Any], starts: NDArray[Any], length: int) -> torch.Tensor:
    """Mean loss of predicting the windows of `length + 1` tokens that begin at `starts`."""
    windows = torch.from_numpy(text[starts[:, None] + np.arange(length + 1)].astype(np.int64))
    return cross_entropy(model(windows[:, :-1]).logits.flatten(0, 1), windows[:, 1:].flatten())


# ---- results


def runs_of(suite: str, seeds: list[int], methods: list[str], multiples: list[float]) -> Iterator[dict[str, Any]]:
    """Every run of a suite, one seed after the other."""
    for seed in seeds:
        for workload in SUITES[suite]:
            for method in methods:
                for multiple in multiples:
                    yield {"workload": described(workload), "method": method, "multiple": multiple, "seed": seed}


def described(workload: Workload) -> dict[str, Any]:
    """A workload's settings; the model is named where it is not a LLaMA, which the oldest results do not say."""
    return {key: value for key, value in asdict(workload).items() if (key, value) != ("model", "llama")}


def key_of(run: dict[str, Any]) -> str:
    """What makes a run another run."""
    return json.dumps({key: run[key] for key in ("workload", "method", "multiple", "seed")}, sort_keys=True)


def load(path: Path, suite: str | None = None) -> list[dict[str, Any]]:
    """The runs that a file holds, or those of a suite in it."""
    runs = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return runs if suite is None else [run for run in runs if Workload(**run["workload"]) in SUITES[suite]]


def losses(path: Path, suite: str | None) -> dict[str, dict[str, dict[float, list[float]]]]:
    """Final losses over the seeds, by workload, method and multiple of the rate."""
    found: dict[str, dict[str, dict[float, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for run in load(path, suite):
        found[Workload(**run["workload"]).name][run["method"]][run["multiple"]].append(run["loss"])
    return found


def table(path: Path, suite: str | None) -> None:
    """Print the losses, how auto compares with each rival at the same rate and workload, and what the cap let pass."""
    from scipy.stats import wilcoxon

    found = losses(path, suite)
    spread = [np.std(x, ddof=1) for by in found.values() for r in by.values() for x in r.values() if len(x) > 1]
    for workload, by_method in found.items():
        multiples = sorted({m for by_rate in by_method.values() for m in by_rate})
        print(f"\n{workload}\n{'':34}" + "".join(f"{f'x{m:.2g}':>16}" for m in multiples))
        for method, by_rate in by_method.items():
            cells = [f"{cell(by_rate[m]) if m in by_rate else '':>16}" for m in multiples]
            print(f"{method:34}" + "".join(cells))
    print("\nmean, sd over seeds, (seeds); the median sd is " + f"{np.median(spread):.3f}")

    means = {
        (workload, method, m): min(float(np.mean(x)), 1e3)
        for workload, by_method in found.items()
        for method, by_rate in by_method.items()
        for m, x in by_rate.items()
    }
    for (workload, method, m), loss in list(means.items()):
        if method != "auto":
            key = (workload, "the best of them", m)
            means[key] = min(loss, means.get(key, math.inf))
    print("\nauto minus a rival, of means over seeds: mean, workloads in which auto is lower, p (Wilcoxon, two-sided)")
    multiples = sorted({m for _, method, m in means if method != "auto"})
    print(f"{'':34}" + "".join(f"{f'x{m:.2g}':>26}" for m in multiples))
    for rival in dict.fromkeys(method for _, method, _ in means if method != "auto"):
        cells = []
        for multiple in multiples:
            difference = np.array([
                means[workload, "auto", multiple] - loss
                for (workload, method, m), loss in means.items()
                if (method, m) == (rival, multiple) and (workload, "auto", multiple) in means
            ])  # fmt: skip
            if len(difference) < 2:
                cells.append(f"{'':>26}")
                continue
            p = wilcoxon(difference).pvalue if np.any(difference) else 1.0
            said = f"{difference.mean():+.3f} {(difference < 0).sum()}/{len(difference)} p={p:.2g}"
            cells.append(f"{said:>26}")
        print(f"{rival:34}" + "".join(cells))

    print("\nbest over the rates: auto, the best rival; auto at 3 and 10 times the rate minus that")
    for workload in found:
        own = {m: loss for (name, method, m), loss in means.items() if (name, method) == (workload, "auto")}
        others = [x for (name, method, _), x in means.items() if name == workload and method != "auto"]
        best = min(others, default=math.nan)
        hot = "".join(f"{own[m] - best:+9.3f}" if m in own else f"{'':9}" for m in (3.0, 10.0))
        print(f"{workload:40}{min(own.values()):9.3f}{best:9.3f}{hot}")

    print(
        "\nruns of auto by the share of a step's spectral norm that passed the cap before the decay, and those of them"
    )
    print("within 0.1 of the best loss of auto at any rate (same workload and seed)")
    runs = [(Workload(**run["workload"]).name, run) for run in load(path, suite) if run["method"] == "auto"]
    least: dict[tuple[str, int], float] = defaultdict(lambda: math.inf)
    for name, run in runs:
        least[name, run["seed"]] = min(least[name, run["seed"]], run["loss"])
    for low, high in ((0.3, 1.01), (0.05, 0.3), (0.0, 0.05)):
        some = [(name, run) for name, run in runs if low <= run.get("share", -1.0) < high]
        close = sum(run["loss"] - least[name, run["seed"]] < 0.1 for name, run in some)
        print(f"{low:g} to {min(high, 1.0):g}: {len(some)} ({close})")


def cell(of_seeds: list[float]) -> str:
    """Mean, deviation and number of some losses."""
    deviation = f" {np.std(of_seeds, ddof=1):.3f}" if len(of_seeds) > 1 else ""
    return f"{np.mean(of_seeds):.3f}{deviation} ({len(of_seeds)})"


def plot(path: Path, picture: Path, suite: str | None) -> None:
    """Draw final loss against peak rate, a panel a workload that has three rates or more."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = {name: by for name, by in losses(path, suite).items() if len(by["auto"]) > 2}
    shown = [method for method in METHODS if any(method in by_method for by_method in found.values())]
    columns = min(5, len(found))
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.7 * rows), squeeze=False)
    for axis, (workload, by_method) in zip(axes.flat, found.items(), strict=False):
        rate = next(Workload(**r["workload"]).rate for r in load(path) if Workload(**r["workload"]).name == workload)
        for index, method in enumerate(shown):
            if by_rate := by_method.get(method):
                rates = sorted(by_rate)
                means = np.array([np.mean(by_rate[m]) for m in rates])
                style = (
                    {"color": "k", "lw": 2.4, "zorder": 3} if method == "auto" else {"color": f"C{index}", "lw": 1.0}
                )
                axis.plot([rate * m for m in rates], means, label=method, marker=".", **style)
        axis.set_xscale("log")
        ticks = [rate * m for m in MULTIPLES if any(m in by_rate for by_rate in by_method.values())]
        axis.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_title(workload, fontsize=7)
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    axes[0, 0].set_ylabel("final validation loss")
    axes[-1, 0].set_xlabel("peak learning rate")
    drawn = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    figure.legend(drawn.values(), drawn.keys(), loc="lower center", ncols=4, fontsize=7)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(picture, dpi=80)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table", "plot"))
    parser.add_argument("output", type=Path)
    parser.add_argument("picture", type=Path, nargs="?")
    parser.add_argument("--suite", choices=SUITES, help="what to run; of table and plot, what to show")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--multiples", type=lambda text: float(Fraction(text)), nargs="+", default=list(MULTIPLES))
    parser.add_argument("--share", default="0/1")
    given = parser.parse_args()
    if given.command == "table":
        table(given.output, given.suite)
    elif given.command == "plot":
        plot(given.output, given.picture, given.suite)
    else:
        torch.set_num_threads(1)
        index, count = map(int, given.share.split("/"))
        runs = list(runs_of(given.suite or "test", given.seeds, given.methods, given.multiples))
        for run in runs[index::count]:
            if key_of(run) in {key_of(other) for other in load(given.output)}:
                continue
            workload, began = Workload(**run["workload"]), time.monotonic()
            outcome = final_loss(workload, workload.rate * run["multiple"], run["method"], run["seed"])
            with given.output.open("a") as file:
                file.write(json.dumps({**run, **outcome, "seconds": round(time.monotonic() - began, 1)}) + "\n")
            print(workload.name, run["method"], run["multiple"], run["seed"], outcome["loss"], flush=True)


if __name__ == "__main__":
    main()
