"""The arithmetic of error feedback, one parameter at a time: what a worker sends, and what all make of it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from warmgap._checks import check_count, check_finite
from warmgap.torch.compression.compressors import Compressor, Message, message_bytes

First = Literal["all", "compressed"]

VERSION = 1

# What wrappers put before a parameter's name.
_PREFIXES = ("module.", "_orig_mod.")


def local(x: Tensor) -> Tensor:
    """This rank's shard of x; all of it where x is not sharded. Writing to it writes to x."""
    return x.to_local() if hasattr(x, "to_local") else x


def named(model: nn.Module | Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The trainable parameters by name, without the prefixes of wrappers."""
    pairs = model.named_parameters() if isinstance(model, nn.Module) else model
    found: dict[str, Tensor] = {}
    for full, p in pairs:
        if not isinstance(p, Tensor):
            raise ValueError(
                f"expected a model or pairs of names and parameters, got {type(p).__name__} for {full!r}; give model "
                "or model.named_parameters()"
            )
        if not p.requires_grad:
            continue
        if not p.is_floating_point():
            raise ValueError(f"parameter {full!r} must be real and floating-point, got {p.dtype}; leave it out")
        name = full
        while prefix := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), ""):
            name = name.removeprefix(prefix)
        if name in found:
            raise ValueError(f"two parameters are named {name!r}; give each a name of its own")
        found[name] = p
    if not found:
        raise ValueError("there is no trainable parameter; give a model with requires_grad=True somewhere")
    return found


@dataclass(frozen=True)
class Settings:
    """What all workers of a run have in common."""

    compressor: Compressor
    momentum: float
    first: First
    seed: int

    def __post_init__(self) -> None:
        if not all(hasattr(self.compressor, method) for method in ("alpha", "encode", "decode")):
            raise ValueError(
                f"compressor must be one of Identity, TopK, ScaledSign, LowRank or have their methods, got "
                f"{self.compressor!r}"
            )
        if not 0.0 <= check_finite("momentum", self.momentum) < 1.0:
            raise ValueError(f"momentum must be at least 0 and under 1, got {self.momentum!r}")
        if self.first not in ("all", "compressed"):
            raise ValueError(f"first must be 'all' or 'compressed', got {self.first!r}")
        check_count("seed", self.seed, minimum=0)

    def plain(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "compressor": repr(self.compressor),
            "momentum": float(self.momentum),
            "first": self.first,
            "seed": int(self.seed),
        }

    def sends_all(self, p: Tensor, step: int) -> bool:
        """Whether a parameter's estimate is sent as it is, so that nothing is lost."""
        return (step == 0 and self.first == "all") or self.compressor.alpha(local(p).shape) >= 1.0

    def seed_of(self, place: int, step: int) -> int:
        """The seed of the random numbers of a parameter's compression in a step."""
        return (self.seed * 1_000_003 + place) * 2**32 + step


class Worker:
    """What one worker keeps of each parameter: its estimate of the gradient, and what the others have of it.

    Attributes:
        estimates: v_i, the momentum; empty without momentum, where the estimate is the gradient.
        shared: g_i, what has arrived of the estimate.
    """

    def __init__(self, params: Mapping[str, Tensor], settings: Settings) -> None:
        self.settings = settings
        self.shared = zeros_like(params)
        self.estimates = zeros_like(params) if settings.momentum else {}

    def message(self, name: str, gradient: Tensor, step: int, seed: int, *, sends_all: bool) -> Message:
        """Move the estimate towards a gradient, and return what of it is sent.

        A gradient with a NaN or an infinity changes no estimate.
        """
        shared = local(self.shared[name])
        gradient = gradient.to(shared.dtype)
        finite = gradient.isfinite().all()
        if self.settings.momentum:
            estimate = local(self.estimates[name])
            moved = gradient if step == 0 else estimate.lerp(gradient, 1.0 - self.settings.momentum)
            estimate.copy_(torch.where(finite, moved, estimate))
        else:
            estimate = torch.where(finite, gradient, shared)
        if sends_all:
            # Not the difference, which rounding would keep from adding up to the estimate.
            shared.copy_(estimate)
            return (shared,)
        message = self.settings.compressor.encode(estimate - shared, seed)
        shared.add_(self.settings.compressor.decode(message, shared))
        return message

    def state_dict(self) -> dict[str, Any]:
        """The tensors, by parameter."""
        return {"shared": dict(self.shared), "estimates": dict(self.estimates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over tensors that were saved."""
        copy_into(self.shared, state["shared"])
        copy_into(self.estimates, state["estimates"])


def zeros_like(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A zero for each parameter, sharded as it is, in float32 at least: rounded state would lose small messages."""
    return {
        name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False)
        for name, p in params.items()
    }


def copy_into(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    """Copy tensors by name.

    Raises:
        ValueError: If names or shapes differ.
    """
    if targets.keys() != sources.keys():
        odd = sorted(targets.keys() ^ sources.keys())
        raise ValueError(f"the state is that of other parameters: {', '.join(odd[:5])}; load it into the same model")
    for name, target in targets.items():
        if target.shape != sources[name].shape:
            raise ValueError(
                f"the state of {name!r} has shape {tuple(sources[name].shape)}, the parameter {tuple(target.shape)}; "
                "load it into the same model"
            )
        local(target).copy_(local(sources[name]))


def check_state(state: Mapping[str, Any], settings: Settings, workers: int) -> None:
    """Raise ValueError unless a saved state is one of this version, these settings and as many workers."""
    if state.get("version") != VERSION:
        raise ValueError(
            f"the state is of version {state.get('version')!r}, this is version {VERSION}; load what state_dict() gave"
        )
    for key, value in settings.plain().items():
        if state["settings"][key] != value:
            raise ValueError(
                f"the state was saved with {key}={state['settings'][key]!r}, this is {key}={value!r}; make it with the "
                "same settings"
            )
    if state["workers"] != workers:
        raise ValueError(
            f"the state is that of {state['workers']} workers, here are {workers}: what each has sent can't be shared "
            "out anew; resume with as many, or start without this state"
        )


def mean(tensors: Iterable[Tensor], count: int) -> Tensor:
    """The mean in the order of the workers, so that all have the same bits."""
    total: Tensor | None = None
    for x in tensors:
        total = x.clone() if total is None else total.add_(x)
    assert total is not None  # noqa: S101 (there is at least one worker)
    return total.div_(count)


@dataclass
class Traffic:
    """Bytes of one step, or of several.

    Attributes:
        message: What one worker has to say: the length of its messages.
        sent: What leaves one worker's machine for it, in a ring.
        dense: What would leave it without compression, for an all-reduce in a ring.

    Example:
        >>> print(Traffic(message=40, sent=60, dense=3200) + Traffic(message=40, sent=60, dense=3200))
        message 80 B, sent 120 B, without compression 6.4 kB
    """

    message: int = 0
    sent: int = 0
    dense: int = 0

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(self.message + other.message, self.sent + other.sent, self.dense + other.dense)

    def __str__(self) -> str:
        return f"message {_human(self.message)}, sent {_human(self.sent)}, without compression {_human(self.dense)}"


def is_gathered(message: Message, entries: Tensor, workers: int) -> bool:
    """Whether it is less traffic to give everyone's message to everyone than to add up dense tensors.

    In a ring of n, an all-gather of m bytes sends (n - 1) m from each, a sum of d bytes 2 (n - 1)/n d.
    """
    return message_bytes(message) * workers < 2 * entries.numel() * entries.element_size()


def traffic_of(messages: Sequence[tuple[Message, Tensor]], workers: int) -> Traffic:
    """What a step costs, from the messages of one worker and tensors like the compressed ones."""
    total = Traffic()
    for message, like in messages:
        dense = 2 * (workers - 1) * like.numel() * like.element_size() // workers
        size = message_bytes(message)
        sent = (workers - 1) * size if is_gathered(message, like, workers) else dense
        total += Traffic(size, sent, dense)
    return total


def _human(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"
