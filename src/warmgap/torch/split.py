"""Which parameter of a model is what: the groups that an optimizer for norm-constrained steps needs.

Muon, Scion and their kin treat a hidden matrix, an embedding, an output head and a vector differently. What a parameter
is follows from the module that owns it, not from its name or its number of dimensions alone: an embedding is a
two-dimensional tensor too, and a tied head has no name of its own. The practice of keeping embeddings and the head
apart from hidden matrices is that of K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks"
(2024), section "Empirical considerations".
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args, overload

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

ParameterKind = Literal["matrix", "conv", "embedding", "head", "norm", "bias", "other"]

Role = Literal["hidden", "embedding", "head", "other"]

KINDS: tuple[ParameterKind, ...] = get_args(ParameterKind)
ROLES: tuple[Role, ...] = get_args(Role)

_ROLE_OF: dict[ParameterKind, Role] = {"matrix": "hidden", "conv": "hidden", "embedding": "embedding", "head": "head"}

_NORM_LAYERS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)
_RNN_GATES = {"LSTM": 4, "GRU": 3}
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")


@dataclass(frozen=True)
class SplitRow:
    """One line of the table: where a parameter went, and why.

    Attributes:
        name: The parameter's first name in `model.named_parameters()`.
        shape: Its shape.
        module: The class name of the module that owns it.
        kind: What it was taken to be; `None` for a frozen parameter, which is left out.
        reason: Why.
    """

    name: str
    shape: tuple[int, ...]
    module: str
    kind: ParameterKind | None
    reason: str

    @property
    def role(self) -> Role | None:
        """What a schedule takes it for: hidden are matrices and convolutions; norms and biases are `other`."""
        return None if self.kind is None else _ROLE_OF.get(self.kind, "other")


class ParameterSplit(Sequence[dict[str, Any]]):
    """The parameter groups that `split_parameters` made: give it to an optimizer, or print it.

    Every access hands out a fresh dict, because `torch.optim.Optimizer` writes its defaults into the groups it is
    given: one split may be given to several optimizers, or changed (`for group in split: ...`) without a side effect
    here.

    Attributes:
        rows: One `SplitRow` for each parameter, in the order of `model.named_parameters()`, frozen ones included.
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]], rows: Iterable[SplitRow]) -> None:
        self._groups = tuple(dict(group) for group in groups)
        self.rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._groups)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [_copy_group(group) for group in self._groups[index]]
        return _copy_group(self._groups[index])

    def __repr__(self) -> str:
        lines = [("parameter", "shape", "module", "kind", "why")]
        for row in self.rows:
            shape = "x".join(map(str, row.shape)) or "scalar"
            lines.append((row.name, shape, row.module, row.kind or "left out", row.reason))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


@dataclass(frozen=True)
class _Owner:
    """A place where a parameter lives; a shared parameter has several.

    Attributes:
        name: The parameter's name in the model.
        attribute: What the module calls it.
        module: The layer it belongs to; for a parametrised weight the layer itself, not the list that holds the parts.
        parent: The module around that layer.
        is_part: Whether it is one of several tensors that a parametrised weight is made of.
    """

    name: str
    attribute: str
    module: nn.Module
    parent: nn.Module | None
    is_part: bool


@dataclass(frozen=True)
class _Verdict:
    kind: ParameterKind
    reason: str
    blocks: tuple[int, ...] = ()
    transposed: bool = False


def split_parameters(
    model: nn.Module,
    *,
    head: str | nn.Module | Iterable[str | nn.Module] | None = None,
    overrides: Mapping[str | nn.Module, ParameterKind] | None = None,
    fused: Mapping[str | nn.Module, int | Sequence[int]] | None = None,
) -> ParameterSplit:
    """Sorts a model's trainable parameters into groups by the module that owns them.

    The kinds, and how each is recognised:

    - `embedding`: the weight of an `nn.Embedding` or `nn.EmbeddingBag`, or of a module with an integer
      `num_embeddings`; also where the output head shares it.
    - `head`: the output layer's weight, see below.
    - `norm`: every parameter of torch's norm layers, and of a module without children that holds vectors only, such as
      the RMS norms that model libraries write for themselves. No weight decay.
    - `bias`: a vector in a module that also holds a tensor of two or more dimensions, or that is its module's `bias`.
      No weight decay.
    - `conv`: the weight of torch's convolutions, of any number of dimensions; also of transposed ones, unless they have
      several groups.
    - `matrix`: the weight of an `nn.Linear`, of a module whose `weight` has two dimensions (`Conv1D` of transformers),
      the projections of `nn.MultiheadAttention`, the matrices of recurrent layers, and stacks of expert matrices, of
      shape (experts, rows, columns), in a module with an integer `num_experts`.
    - `other`: everything else: class tokens, position tables that are bare parameters, scalars, the parts of a
      weight-normalised matrix, transposed convolutions of several groups, whose weight has no dimension for all output
      channels. Without weight decay where at most one dimension is larger than one.

    The head is what `model.get_output_embeddings()` returns, where the model has that method and it returns a module.
    Otherwise it is the last `nn.Linear` in definition order, unless that one is plainly a hidden layer: it belongs to a
    stack of blocks (an `nn.ModuleList`, or an `nn.Sequential` with several elements of the same class), to an
    `nn.MultiheadAttention`, or a norm layer of its output's width is defined after it. A model whose last layer is none
    of these has no head, which is right for a bare encoder. Say `head=` where this guess is wrong.

    A parameter that occurs several times, a tied head above all, comes once, under its first name. Frozen ones
    (`requires_grad=False`) are left out, and are in the table.

    Args:
        model: The model. Wrappers such as `DistributedDataParallel` or `torch.compile` may be around it already.
        head: The output layer or layers: modules, or names as in `model.named_modules()`. `()` says that there is none.
        overrides: What else is wrongly recognised: a kind for each module, or for each name of a module or parameter;
            `*` and `?` in a name match as in a file name. A parameter's own name goes before its module's, an inner
            module before an outer one. Given for a module, `matrix`, `conv`, `embedding` and `head` speak of its
            tensors of two or more dimensions; its biases stay biases.
        fused: Matrices that are several stacked along their output dimension, such as queries, keys and values in one
            `nn.Linear`: how many of equal size, or the size of each. Keys as in `overrides`. `nn.MultiheadAttention`,
            `nn.LSTM` and `nn.GRU` are known.

    Returns:
        The groups, in the order of `KINDS`, to be given to any optimizer. Each is a dict with `params`, `param_names`
        (as torch itself calls them), `kind`, `role`, `weight_decay` of 0.0 where it is habit not to decay and absent
        otherwise, for some matrices `blocks`, the sizes into which the output dimension is to be split, and
        `transposed`, True where the weight is stored as (in, out) or, of a transposed convolution, as
        (in, out, *kernel). `print` shows a table.

    Raises:
        TypeError: `model` is not an `nn.Module`, or a key of an argument is neither a name nor a module.
        ValueError: No parameter is trainable, one is not initialised yet, or `head`, `overrides` or `fused` name
            something the model does not have or that can't be what they say.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"split_parameters needs a torch.nn.Module, got {type(model).__name__}; pass the model, not its parameters"
        )
    owners = _owners(model)
    _check_trainable(owners)
    names = {id(module): name for name, module in model.named_modules()}
    heads, head_reason = _find_heads(model, head, names)
    kind_of = _Overrides("overrides", overrides or {}, names)
    blocks_of = _Overrides("fused", fused or {}, names)

    rows: list[SplitRow] = []
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for parameter, places in owners.items():
        first = places[0]
        shape = tuple(parameter.shape)
        owner_class = type(first.module).__name__
        chosen_kind, chosen_blocks = kind_of.find(places, parameter), blocks_of.find(places, parameter)
        if not parameter.requires_grad:
            rows.append(SplitRow(first.name, shape, owner_class, None, "frozen (requires_grad=False)"))
            continue
        verdict = _classify(places, parameter, heads, head_reason)
        if chosen_kind is not None:
            verdict = _overridden(verdict, chosen_kind, parameter, first.name)
        if chosen_blocks is not None:
            verdict = _with_blocks(verdict, chosen_blocks, parameter, first.name)
        decays = not (verdict.kind in ("norm", "bias") or (verdict.kind == "other" and _is_vector(parameter)))
        reason = verdict.reason if decays else f"{verdict.reason}; no weight decay"
        rows.append(SplitRow(first.name, shape, owner_class, verdict.kind, reason))

        key = (KINDS.index(verdict.kind), not decays, verdict.transposed, verdict.blocks)
        group = groups.setdefault(
            key, {"params": [], "param_names": [], "kind": verdict.kind, "role": _ROLE_OF.get(verdict.kind, "other")}
        )
        if not decays:
            group["weight_decay"] = 0.0
        if verdict.blocks:
            group["blocks"] = verdict.blocks
        if verdict.transposed:
            group["transposed"] = True
        group["params"].append(parameter)
        group["param_names"].append(first.name)
    kind_of.check_all_used()
    blocks_of.check_all_used()
    return ParameterSplit((groups[key] for key in sorted(groups)), rows)


def _copy_group(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, list) else value for key, value in group.items()}


def _owners(model: nn.Module) -> dict[nn.Parameter, list[_Owner]]:
    """Every parameter once, with every place it lives in, in the order of `model.named_parameters()`."""
    parents = {child: module for module in model.modules() for child in module.children()}
    owners: dict[nn.Parameter, list[_Owner]] = {}
    for prefix, module in model.named_modules():
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{attribute}" if prefix else attribute
            if isinstance(module, ParametrizationList):
                # layer.parametrizations.weight.original: the layer is two levels up and calls the tensor "weight".
                layer, weight = parents[parents[module]], prefix.rpartition(".")[2]
                place = _Owner(name, weight, layer, parents.get(layer), attribute != "original")
            else:
                place = _Owner(name, attribute, module, parents.get(module), False)
            owners.setdefault(parameter, []).append(place)
    return owners


def _check_trainable(owners: dict[nn.Parameter, list[_Owner]]) -> None:
    if not owners:
        raise ValueError(
            "the model has no parameters: there is nothing to optimize; pass the model that is to be trained"
        )
    for parameter, places in owners.items():
        if is_lazy(parameter):
            raise ValueError(f"parameter {places[0].name!r} is not initialised yet; run one forward pass first")
    if not any(parameter.requires_grad for parameter in owners):
        raise ValueError(f"all {len(owners)} parameters are frozen (requires_grad=False); unfreeze those to be trained")


def _classify(places: list[_Owner], parameter: nn.Parameter, heads: frozenset[int], head_reason: str) -> _Verdict:
    """Of a shared parameter's owners an embedding decides, else a head, else the first."""
    verdicts = [_classify_one(place, parameter, heads, head_reason) for place in places]
    verdict = next(
        (v for kind in ("embedding", "head") for v in verdicts if v.kind == kind),
        verdicts[0],
    )
    if len(places) > 1:
        shared = ", ".join(place.name for place in places[1:])
        verdict = _Verdict(verdict.kind, f"{verdict.reason}, tied with {shared}", verdict.blocks, verdict.transposed)
    return verdict


def _classify_one(place: _Owner, parameter: nn.Parameter, heads: frozenset[int], head_reason: str) -> _Verdict:
    module, attribute = place.module, place.attribute
    if place.is_part:
        return _Verdict("other", "one part of a parametrised weight, not the weight itself")
    if isinstance(module, _NORM_LAYERS):
        return _Verdict("norm", "norm layer")
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or _integer(module, "num_embeddings"):
        return (
            _Verdict("embedding", "embedding layer")
            if parameter.ndim >= 2
            else _Verdict("bias", "vector of an embedding layer")
        )
    if isinstance(module, nn.MultiheadAttention):
        return _classify_attention(attribute, parameter, module)
    if isinstance(module, nn.RNNBase) and parameter.ndim == 2:
        gates = _RNN_GATES.get(module.mode, 1) if parameter.shape[0] % module.hidden_size == 0 else 1
        if gates > 1 and parameter.shape[0] == gates * module.hidden_size:
            return _Verdict("matrix", f"recurrent layer, {gates} gates in one", (module.hidden_size,) * gates)
        return _Verdict("matrix", "recurrent layer")
    if parameter.ndim < 2:
        return _classify_vector(attribute, parameter, module)
    if attribute == "weight" and isinstance(module, _ConvNd) and module.transposed and module.groups > 1:
        return _Verdict("other", f"transposed convolution of {module.groups} groups")
    if id(module) in heads and attribute == "weight":
        return _Verdict("head", head_reason, transposed=_stored_transposed(parameter, module))
    if isinstance(module, _ConvNd) and attribute == "weight":
        transposed = _stored_transposed(parameter, module)
        reason = "transposed convolution, stored as (in, out, *kernel)" if transposed else "convolution"
        return _Verdict("conv", reason, transposed=transposed)
    if attribute == "weight" and parameter.ndim == 2 and (isinstance(module, nn.Linear) or min(parameter.shape) > 1):
        return _classify_linear(parameter, module, place.parent)
    if parameter.ndim == 3 and _integer(module, "num_experts") == parameter.shape[0]:
        return _Verdict("matrix", "one matrix for each expert")
    return _Verdict("other", "bare parameter of a module that is no known layer")


def _classify_attention(attribute: str, parameter: nn.Parameter, module: nn.MultiheadAttention) -> _Verdict:
    if attribute == "in_proj_weight":
        return _Verdict("matrix", "attention, queries, keys and values in one", (module.embed_dim,) * 3)
    if attribute in ("bias_k", "bias_v") or parameter.ndim < 2:
        return _Verdict("bias", "bias of attention")
    return _Verdict("matrix", "attention projection")


def _classify_vector(attribute: str, parameter: nn.Parameter, module: nn.Module) -> _Verdict:
    own = list(module.parameters(recurse=False))
    beside_a_matrix = hasattr(module, "parametrizations") or any(tensor.ndim >= 2 for tensor in own)
    if attribute == "bias" and (beside_a_matrix or len(own) == 1):
        return _Verdict("bias", "bias")
    if parameter.ndim == 0:
        return _Verdict("other", "scalar")
    if beside_a_matrix:
        return _Verdict("bias", "vector beside a matrix")
    if isinstance(module, nn.PReLU) or any(True for _ in module.children()):
        return _Verdict("other", "vector of a module that is no known layer")
    return _Verdict("norm", "module that holds vectors only")


def _classify_linear(parameter: nn.Parameter, module: nn.Module, parent: nn.Module | None) -> _Verdict:
    rows, columns = parameter.shape
    transposed = _stored_transposed(parameter, module)
    reason = "linear layer" if isinstance(module, nn.Linear) else "module with a two-dimensional weight"
    if transposed:
        rows, columns = columns, rows
        reason += ", stored as (in, out)"
    if rows == 3 * columns and any(_integer(parent, name) for name in _HEAD_COUNTS):
        reason += "; perhaps queries, keys and values in one: if so, say fused="
    return _Verdict("matrix", reason, transposed=transposed)


def _stored_transposed(parameter: nn.Parameter, module: nn.Module) -> bool:
    """Whether a layer's weight has its inputs as first dimension and its outputs as second."""
    if isinstance(module, _ConvNd):
        return module.transposed
    if isinstance(module, nn.Linear) or parameter.ndim != 2:
        return False
    rows, columns = parameter.shape
    bias = getattr(module, "bias", None)
    return (getattr(module, "nx", None), getattr(module, "nf", None)) == (rows, columns) or (
        isinstance(bias, nn.Parameter) and rows != columns and tuple(bias.shape) == (columns,)
    )


def _overridden(verdict: _Verdict, kind: ParameterKind, parameter: nn.Parameter, name: str) -> _Verdict:
    least = {"matrix": 2, "embedding": 2, "head": 2, "conv": 3}.get(kind, 0)
    if parameter.ndim < least:
        raise ValueError(
            f"overrides say {kind!r} for parameter {name!r}, which needs {least} or more dimensions, but its shape is "
            f"{tuple(parameter.shape)}; choose 'norm', 'bias' or 'other'"
        )
    if kind == verdict.kind:
        return verdict
    return _Verdict(kind, "said by overrides", transposed=verdict.transposed)


def _with_blocks(verdict: _Verdict, blocks: int | Sequence[int], parameter: nn.Parameter, name: str) -> _Verdict:
    rows = parameter.shape[-1] if verdict.transposed else parameter.shape[-2] if parameter.ndim >= 2 else 0
    if isinstance(blocks, int):
        sizes: tuple[int, ...] = (rows // max(blocks, 1),) * blocks
    else:
        sizes = tuple(blocks)
    if verdict.kind != "matrix" or len(sizes) < 2 or min(sizes) < 1 or sum(sizes) != rows:
        raise ValueError(
            f"fused={blocks!r} does not fit parameter {name!r} ({verdict.kind}, shape {tuple(parameter.shape)}): it "
            f"must be a matrix, and its output dimension of {rows} must split into two or more parts of the given sizes"
        )
    reason = verdict.reason.split("; perhaps ")[0]
    return _Verdict("matrix", f"{reason}, {len(sizes)} matrices in one", sizes, verdict.transposed)


class _Overrides:
    """What a user said about modules and names; remembers what was never used."""

    def __init__(self, argument: str, given: Mapping[Any, Any], names: dict[int, str]) -> None:
        self._argument = argument
        self._names = names
        self._given: dict[str, Any] = {}
        self._used: set[str] = set()
        for key, value in given.items():
            if argument == "overrides" and value not in KINDS:
                raise ValueError(f"overrides: {value!r} is not a kind; choose one of {', '.join(KINDS)}")
            self._given[_module_name(argument, key, names)] = value

    def find(self, places: list[_Owner], parameter: nn.Parameter) -> Any:
        """The value for a parameter, or None; the most specific name wins."""
        for depth_from_end in range(max(place.name.count(".") for place in places) + 2):
            for place in places:
                parts = place.name.split(".")
                if depth_from_end > len(parts):
                    continue
                name = ".".join(parts[: len(parts) - depth_from_end])
                # The name itself goes before a pattern that matches it.
                exact = [name] if name in self._given else []
                for pattern in exact + [pattern for pattern in self._given if fnmatchcase(name, pattern)]:
                    value = self._given[pattern]
                    self._used.add(pattern)
                    # A whole module's kind speaks of its matrices, and what is fused in it too.
                    of_matrices = self._argument == "fused" or value in ("matrix", "conv", "embedding", "head")
                    if depth_from_end == 0 or not of_matrices or parameter.ndim >= 2:
                        return value
        return None

    def check_all_used(self) -> None:
        unused = [pattern for pattern in self._given if pattern not in self._used]
        if unused:
            raise ValueError(
                f"{self._argument} names {', '.join(map(repr, unused))}, which matches no parameter and no module "
                "that holds any; see model.named_parameters() and model.named_modules() for the names"
            )


def _module_name(argument: str, key: object, names: dict[int, str]) -> str:
    if isinstance(key, str):
        return key
    if not isinstance(key, nn.Module):
        raise TypeError(f"{argument} takes modules, or names of modules or parameters, got {type(key).__name__}")
    if id(key) not in names:
        raise ValueError(
            f"{argument} names a {type(key).__name__} that is not in this model; pass one of model.modules()"
        )
    return names[id(key)]


def _find_heads(
    model: nn.Module, head: str | nn.Module | Iterable[str | nn.Module] | None, names: dict[int, str]
) -> tuple[frozenset[int], str]:
    """The output layers, by identity, and how they were found."""
    if head is not None:
        modules = dict(model.named_modules())
        given = [head] if isinstance(head, str | nn.Module) else list(head)
        found = set()
        for item in given:
            name = _module_name("head", item, names)
            weight = getattr(modules.get(name), "weight", None)
            if name not in modules or weight is None or weight.ndim < 2:
                raise ValueError(
                    f"head={name!r} is not a module with a weight of two or more dimensions; see model.named_modules()"
                )
            found.add(id(modules[name]))
        return frozenset(found), "output head, said by head="
    output_of = getattr(_unwrapped(model), "get_output_embeddings", None)
    output = output_of() if callable(output_of) else None
    if isinstance(output, nn.Module):
        return frozenset({id(output)}), "output head, from get_output_embeddings()"
    last = _last_linear(model)
    return (frozenset() if last is None else frozenset({id(last)})), "output head, the last linear layer"


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside wrappers, such as those of data parallelism, that hold nothing but it."""
    children = list(model.children())
    if hasattr(model, "get_output_embeddings") or len(children) != 1 or list(model.parameters(recurse=False)):
        return model
    return _unwrapped(children[0])


def _last_linear(model: nn.Module) -> nn.Linear | None:
    """The last linear layer in definition order, unless it is plainly a hidden one; see `split_parameters`."""
    last, width_read_later = None, False
    for module in model.modules():
        if isinstance(module, nn.Linear):
            last, width_read_later = module, False
        elif last is not None and isinstance(module, _ConvNd | nn.RNNBase):
            last = None
        elif last is not None and not any(True for _ in module.children()):
            own = list(module.parameters(recurse=False))
            width_read_later |= bool(own) and all(tuple(tensor.shape) == (last.out_features,) for tensor in own)
    if last is None or width_read_later:
        return None
    for container in model.modules():
        for element in container.children():
            if element is last or all(module is not last for module in element.modules()):
                continue
            twins = sum(type(other) is type(element) for other in container.children())
            if isinstance(container, nn.ModuleList) or (isinstance(container, nn.Sequential) and twins > 1):
                return None
            if isinstance(element, nn.MultiheadAttention):
                return None
    return None if isinstance(model, nn.MultiheadAttention) else last


def _integer(module: nn.Module | None, attribute: str) -> int:
    """An integer attribute of a module, or 0."""
    value = getattr(module, attribute, 0)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _is_vector(parameter: nn.Parameter) -> bool:
    return sum(size > 1 for size in parameter.shape) <= 1
