"""Which parameter of a model is what: groups for an optimizer, and the role of each.

Muon, Scion and their kin treat a hidden matrix, an embedding, an output head and a vector differently, and so does a
schedule that holds back hidden matrices only. What a parameter is follows from the module that owns it, not from its
name or its number of dimensions alone: an embedding is a two-dimensional tensor too, and a tied head has no name of its
own. Embeddings and the head are kept apart as in K. Jordan et al., "Muon: An optimizer for hidden layers in neural
networks" (2024), section "Empirical considerations". A first layer that reads dense data, as in an MLP, a convnet or a
vision transformer, counts as hidden: Muon's authors give it all convolutions of a convnet, and Scion (Pethick et al.,
arXiv 2502.07529) the same spectral norm as hidden layers.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args, overload

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

ParameterKind = Literal["matrix", "conv", "embedding", "head", "norm", "bias", "other"]

Role = Literal["hidden", "embedding", "head", "other"]

KINDS: tuple[ParameterKind, ...] = get_args(ParameterKind)
ROLES: tuple[Role, ...] = get_args(Role)

ROLE_OF: dict[ParameterKind, Role] = {"matrix": "hidden", "conv": "hidden", "embedding": "embedding", "head": "head"}

_NORM_LAYERS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)
_RNN_GATES = {"LSTM": 4, "GRU": 3}
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")
_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "n_experts", "moe_num_experts")

# Where a wrapper keeps the module that it stands for: torch's (data parallel, compiled, FSDP, checkpointed), Fabric's,
# and the layers of PEFT, which hold adapters or a trained copy beside it.
_ADAPTED = ("base_layer", "original_module")
_WRAPPED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", *_ADAPTED)


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
        return None if self.kind is None else ROLE_OF.get(self.kind, "other")


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
        title = ("parameter", "shape", "module", "kind", "why")
        rows = ((r.name, shape_text(r.shape), r.module, r.kind or "left out", r.reason) for r in self.rows)
        return aligned([title, *rows])


@dataclass(frozen=True)
class _Place:
    """A place where a parameter lives; a shared parameter has several.

    Attributes:
        name: The parameter's name in the model.
        attribute: What its layer calls it.
        shape: Its shape; of a parameter that FSDP flattened and cut, that of the whole.
        chain: The layer it belongs to and the modules around it, inner first. For a parametrised weight the layer
            itself, not the list that holds the parts; likewise for a list or dict of parameters.
        own: The shapes of all that the layer holds itself.
        adapts: The layer that it is an adapter of, or a trained copy of, where it is one.
        is_part: Whether it is one of several tensors that a parametrised weight is made of.
    """

    name: str
    attribute: str
    shape: tuple[int, ...]
    chain: tuple[nn.Module, ...]
    own: Mapping[str, tuple[int, ...]]
    adapts: nn.Module | None
    is_part: bool


@dataclass(frozen=True)
class _Verdict:
    kind: ParameterKind
    reason: str
    blocks: tuple[int, ...] = ()
    transposed: bool = False
    decays: bool = True

    @property
    def role(self) -> Role:
        return ROLE_OF.get(self.kind, "other")


def role_of(group: Mapping[str, Any]) -> Role | None:
    """The role of a parameter group, also of one from a state dict that is older than roles; None where it has none.

    Raises:
        ValueError: The group's `role` is none of `ROLES`.
    """
    if "role" in group:
        if group["role"] not in ROLES:
            raise ValueError(f"a group's role must be one of {', '.join(ROLES)}, got {group['role']!r}")
        role: Role = group["role"]
        return role
    return ROLE_OF.get(group["kind"], "other") if group.get("kind") in KINDS else None


Named = str | nn.Module


def split_parameters(
    model: nn.Module,
    *,
    head: Named | Iterable[Named] | None = None,
    overrides: Mapping[Named, ParameterKind] | None = None,
    fused: Mapping[Named, int | Sequence[int]] | None = None,
    transposed: Named | Iterable[Named] | Mapping[Named, bool] = (),
) -> ParameterSplit:
    """Sorts a model's trainable parameters into groups by the module that owns them.

    The kinds, and how each is recognised:

    - `embedding`: the weight of an `nn.Embedding` or `nn.EmbeddingBag`, or of a module with an integer
      `num_embeddings`; also where the output head shares it.
    - `head`: the output layer's weight, see below.
    - `norm`: every parameter of torch's norm layers, and of a module without children that holds vectors only, such as
      the RMS norms that model libraries write for themselves. No weight decay.
    - `bias`: a vector in a module that also holds a tensor of two or more dimensions, or that is its module's `bias`;
      also a bias for each expert. No weight decay.
    - `conv`: the weight of torch's convolutions, of any number of dimensions; also of transposed ones, unless they have
      several groups.
    - `matrix`: the weight of an `nn.Linear`, of a module whose `weight` has two dimensions (`Conv1D` of transformers),
      the projections of `nn.MultiheadAttention`, the matrices of recurrent layers, and stacks of expert matrices, of
      three dimensions, in a module with an integer `num_experts` or with "expert" in its class name.
    - `other`: everything else: class tokens, position tables that are bare parameters, scalars, the parts of a
      weight-normalised matrix, transposed convolutions of several groups, whose weight has no dimension for all output
      channels. Without weight decay where at most one dimension is larger than one.

    The roles: `hidden` are the kinds `matrix` and `conv`, `embedding` and `head` are those kinds, `other` is the rest.

    The head is what `get_output_embeddings()` returns, of the model or of the models inside it, where there is such a
    method and it returns a module. Otherwise it is the last `nn.Linear` in definition order, unless that one is plainly
    a hidden layer: it belongs to a stack of blocks (an `nn.ModuleList`, or an `nn.Sequential` with several elements of
    the same class), to an `nn.MultiheadAttention`, or a norm layer of its output's width is defined after it. A model
    whose last layer is none of these has no head, which is right for a bare encoder. Say `head=` where this guess is
    wrong.

    Wrappers are looked through: those of data parallelism, FSDP, `torch.compile`, activation checkpoints and Lightning,
    torch's parametrizations, and PEFT's. What is trained inside of a head is a head; the two factors of a LoRA pair
    are matrices, or what their layer is where that is an embedding or a head.

    Weight decay is off for what the model marks: parameters with a true `_no_weight_decay` (mamba_ssm), those named by
    a module's `no_weight_decay()` or `no_weight_decay_keywords()` (timm), and the `A_log` of state-space layers.

    A parameter that occurs several times, a tied head above all, comes once, under its first name. Frozen ones
    (`requires_grad=False`) are left out, and are in the table.

    Args:
        model: The model, wrapped already or not. FSDP1 needs `use_orig_params=True`.
        head: The output layer or layers: modules, or names as in `model.named_modules()`, where the parts that wrappers
            add (`module`, `_orig_mod`) may be left out. All matrices inside of it are heads. `()` says that there is
            none.
        overrides: What else is wrongly recognised: a kind for each module, or for each name of a module or parameter;
            `*` and `?` in a name match as in a file name. A parameter's own name goes before its module's, an inner
            module before an outer one. Given for a module, `matrix`, `conv`, `embedding` and `head` speak of its
            tensors of two or more dimensions; its biases stay biases.
        fused: Matrices that are several stacked along their output dimension, such as queries, keys and values in one
            `nn.Linear`: how many of equal size, or the size of each. Keys as in `overrides`. `nn.MultiheadAttention`,
            `nn.LSTM` and `nn.GRU` are known.
        transposed: Modules, or names as in `overrides`, whose matrices are stored as (in, out), stacks of experts as
            (experts, in, out); or a dict that says for each whether they are. `Conv1D` of transformers is known;
            experts are recognised by the module's `is_transposed`, its biases, its sizes and its router.

    Returns:
        The groups, in the order of `KINDS`, to be given to any optimizer. Each is a dict with `params`, `param_names`
        (as torch itself calls them), `kind`, `role`, `weight_decay` of 0.0 where it is habit not to decay and absent
        otherwise, for some matrices `blocks`, the sizes into which the output dimension is to be split, and
        `transposed`, True where the weight is stored as (in, out), (experts, in, out) or, of a transposed convolution,
        (in, out, *kernel). `print` shows a table.

    Raises:
        TypeError: `model` is not an `nn.Module`, or a key of an argument is neither a name nor a module.
        ValueError: No parameter is trainable, one is not initialised yet or flattened with others, or `head`,
            `overrides`, `fused` or `transposed` name something the model does not have or that can't be what they say.

    Example:
        >>> from torch import nn
        >>> from warmgap.torch import Muon, split_parameters
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 9))
        >>> optimizer = Muon(split_parameters(model), lr=2e-3)
        >>> [(group["role"], group["param_names"]) for group in optimizer.param_groups]
        [('hidden', ['1.weight']), ('embedding', ['0.weight']), ('head', ['2.weight']), ('other', ['2.bias'])]
    """
    verdicts = _verdicts(model, head=head, overrides=overrides, fused=fused, transposed=transposed)
    if not any(parameter.requires_grad for parameter in verdicts):
        raise ValueError(
            f"all {len(verdicts)} parameters are frozen (requires_grad=False); unfreeze those to be trained"
        )
    rows: list[SplitRow] = []
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for parameter, (place, verdict) in verdicts.items():
        trained = parameter.requires_grad
        kind, reason = (verdict.kind, verdict.reason) if trained else (None, "frozen (requires_grad=False)")
        rows.append(SplitRow(place.name, place.shape, type(place.chain[0]).__name__, kind, reason))
        if not trained:
            continue
        key = (KINDS.index(verdict.kind), not verdict.decays, verdict.transposed, verdict.blocks)
        if key not in groups:
            groups[key] = {"params": [], "param_names": [], **_layout(verdict)}
            if not verdict.decays:
                groups[key]["weight_decay"] = 0.0
        groups[key]["params"].append(parameter)
        groups[key]["param_names"].append(place.name)
    return ParameterSplit((groups[key] for key in sorted(groups)), rows)


def layouts_of(model: nn.Module, **sorting: Any) -> dict[Tensor, dict[str, Any]]:
    """What `split_parameters` would say, in their groups, of all parameters of a model, frozen ones too."""
    return {parameter: _layout(verdict) for parameter, (_, verdict) in _verdicts(model, **sorting).items()}


def _layout(verdict: _Verdict) -> dict[str, Any]:
    """What a group says of its parameters."""
    fields: dict[str, Any] = {"kind": verdict.kind, "role": verdict.role}
    if verdict.blocks:
        fields["blocks"] = verdict.blocks
    if verdict.transposed:
        fields["transposed"] = True
    return fields


def _verdicts(
    model: nn.Module,
    *,
    head: Named | Iterable[Named] | None = None,
    overrides: Mapping[Named, ParameterKind] | None = None,
    fused: Mapping[Named, int | Sequence[int]] | None = None,
    transposed: Named | Iterable[Named] | Mapping[Named, bool] = (),
) -> dict[nn.Parameter, tuple[_Place, _Verdict]]:
    """What every parameter is, frozen ones too, with its first place; in the order of `model.named_parameters()`."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model must be a torch.nn.Module, got {type(model).__name__}; pass it, not its parameters")
    places_of = _places(model)
    names = {id(module): name for name, module in model.named_modules()}
    heads = _find_heads(model, head, names, places_of)
    if not isinstance(transposed, Mapping):
        given = [transposed] if isinstance(transposed, Named) else transposed
        transposed = dict.fromkeys(given, True)
    kind_of = _Overrides("overrides", overrides or {}, names)
    blocks_of = _Overrides("fused", fused or {}, names)
    stored = _Overrides("transposed", transposed, names)
    undecayed = list(_undecayed(model))

    verdicts: dict[nn.Parameter, tuple[_Place, _Verdict]] = {}
    for parameter, places in places_of.items():
        first, trained = places[0], parameter.requires_grad
        verdict = _classify(places, heads)
        kind, blocks = kind_of.find(places), blocks_of.find(places)
        if kind is not None:
            verdict = _overridden(verdict, kind, first, strict=trained)
        if verdict.kind in ("matrix", "conv", "head"):
            said = stored.find(places)
            if said is not None and said != verdict.transposed:
                order = "inputs" if said else "outputs"
                reason = f"{verdict.reason.split(', stored as ')[0]}, said to be stored with {order} first"
                verdict = replace(verdict, transposed=said, reason=reason)
        # What is fused in a layer is not fused in the factors of an adapter, but in a trained copy of it.
        copied = first.adapts is None or first.shape == tuple(
            getattr(getattr(first.adapts, "weight", None), "shape", ())
        )
        if blocks is not None and (copied or first.name in (fused or {})):
            verdict = _with_blocks(verdict, blocks, first, strict=trained)
        if verdict.kind in ("norm", "bias") or (verdict.kind == "other" and is_vector(first.shape)):
            verdict = replace(verdict, decays=False, reason=f"{verdict.reason}; no weight decay")
        elif (
            getattr(parameter, "_no_weight_decay", False)
            or first.attribute == "A_log"  # of a state-space layer, which only mamba_ssm itself marks
            or any(fnmatchcase(plain_name(place.name), pattern) for place in places for pattern in undecayed)
        ):
            verdict = replace(verdict, decays=False, reason=f"{verdict.reason}; marked: no weight decay")
        verdicts[parameter] = first, verdict
    for said_by_user in (kind_of, blocks_of, stored):
        said_by_user.check_all_used()
    return verdicts


def _places(model: nn.Module) -> dict[nn.Parameter, list[_Place]]:
    """Every parameter once, with every place it lives in, in the order of `model.named_parameters()`."""
    modules = dict(model.named_modules())
    whole = _flattened_by_fsdp(model)
    found: dict[nn.Parameter, list[_Place]] = {}
    for prefix, module in modules.items():
        parts = prefix.split(".") if prefix else []
        chain = tuple(modules[".".join(parts[:depth])] for depth in range(len(parts), -1, -1))
        # layer.parametrizations.weight.original: the layer is two levels up and calls the tensor "weight".
        parametrised = isinstance(module, ParametrizationList)
        levels = 2 if parametrised else int(isinstance(module, nn.ParameterList | nn.ParameterDict) and bool(parts))
        layer = chain[levels:]
        held = dict(layer[0].named_parameters(recurse=False, remove_duplicate=False))
        for attribute, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{attribute}" if prefix else attribute
            if any(is_lazy(p) for p in (parameter, *held.values())):
                raise ValueError(f"parameter {name!r} is not initialised yet; run one forward pass first")
            if attribute == "_flat_param":
                raise ValueError(
                    f"parameter {name!r} is many in one, as FSDP flattened them; wrap the model with "
                    "use_orig_params=True, or with fully_shard, for each to be seen"
                )
            shape = whole.get(parameter, tuple(parameter.shape))
            own = {other: whole.get(p, tuple(p.shape)) for other, p in held.items()}
            called = parts[-1] if levels else attribute
            is_part = parametrised and attribute != "original"
            place = _Place(name, called, shape, layer, own, _adapted(layer), is_part)
            found.setdefault(parameter, []).append(place)
    if not found:
        raise ValueError(
            "the model has no parameters: there is nothing to optimize; pass the model that is to be trained"
        )
    return found


def _flattened_by_fsdp(model: nn.Module) -> dict[nn.Parameter, tuple[int, ...]]:
    """The whole shapes of parameters that FSDP1 shows as this rank's part of a vector."""
    shapes = {}
    for module in model.modules():
        flat = getattr(getattr(module, "_handle", None), "flat_param", None)
        for info, shape in zip(getattr(flat, "_param_infos", ()), getattr(flat, "_shapes", ()), strict=True):
            parameter = getattr(info.module, info.param_name)
            if isinstance(parameter, nn.Parameter):
                shapes[parameter] = tuple(shape)
    return shapes


def _adapted(chain: Sequence[nn.Module]) -> nn.Module | None:
    """The layer beside which a wrapper holds this adapter, or this copy of it."""
    inner: nn.Module | None = None
    for module in chain:
        bases = [base for name in _ADAPTED if (base := module._modules.get(name)) is not None]
        if bases and bases[0] is not inner:
            return _inside(bases[0])
        inner = module
    return None


def _inside(module: nn.Module) -> nn.Module:
    """The module that a wrapper stands for; any other module is itself."""
    children = module._modules
    inner = next((children[name] for name in _WRAPPED if children.get(name) is not None), None)
    if inner is None and list(children) == ["module"]:
        inner = children["module"]
    return module if inner is None else _inside(inner)


def plain_name(name: str) -> str:
    """A name without what wrappers add to it."""
    return ".".join(part for part in name.split(".") if part != "module" and part not in _WRAPPED)


def _undecayed(model: nn.Module) -> Iterator[str]:
    """Patterns of the parameters that modules list as not to be decayed, as timm's do."""
    for prefix, module in model.named_modules():
        start = f"{plain_name(prefix)}." if plain_name(prefix) else ""
        for listed, pattern in (("no_weight_decay", "{}"), ("no_weight_decay_keywords", "*{}*")):
            method = getattr(module, listed, None)
            for name in method() if callable(method) else ():
                yield start + pattern.format(name)


def _classify(places: list[_Place], heads: Mapping[int, str]) -> _Verdict:
    """Of a shared parameter's owners an embedding decides, else a head, else the first."""
    verdicts = [_classify_one(place, heads) for place in places]
    verdict = next(
        (v for kind in ("embedding", "head") for v in verdicts if v.kind == kind),
        verdicts[0],
    )
    if places[0].adapts is not None:
        verdict = replace(verdict, reason=f"{verdict.reason}, trained beside {type(places[0].adapts).__name__}")
    if len(places) > 1:
        shared = ", ".join(place.name for place in places[1:])
        verdict = replace(verdict, reason=f"{verdict.reason}, tied with {shared}")
    return verdict


def _classify_one(place: _Place, heads: Mapping[int, str]) -> _Verdict:
    module, attribute, shape = place.chain[0], place.attribute, place.shape
    head = next((heads[id(around)] for around in place.chain if id(around) in heads), None)
    if place.is_part:
        return _Verdict("other", "one part of a parametrised weight, not the weight itself")
    if isinstance(module, _NORM_LAYERS):
        return _Verdict("norm", "norm layer")
    if _is_embedding(module) or (place.adapts is not None and _is_embedding(place.adapts)):
        if len(shape) < 2:
            return _Verdict("bias", "vector of an embedding layer")
        return _Verdict("head", heads[id(module)]) if id(module) in heads else _Verdict("embedding", "embedding layer")
    if isinstance(module, nn.MultiheadAttention):
        return _classify_attention(place, module)
    if len(shape) < 2:
        return _classify_vector(place)
    if _of_experts(place) and "bias" in attribute:
        return _Verdict("bias", "a bias for each expert")
    if attribute == "weight" and isinstance(module, _ConvNd) and module.transposed and module.groups > 1:
        return _Verdict("other", f"transposed convolution of {module.groups} groups")
    if head is not None and (attribute == "weight" or not is_vector(shape)):
        return _Verdict("head", head, transposed=_stored_transposed(place))
    if isinstance(module, nn.RNNBase) and len(shape) == 2:
        gates = _RNN_GATES.get(module.mode, 1)
        if gates > 1 and shape[0] == gates * module.hidden_size:
            return _Verdict("matrix", f"recurrent layer, {gates} gates in one", (module.hidden_size,) * gates)
        return _Verdict("matrix", "recurrent layer")
    if isinstance(module, _ConvNd) and attribute == "weight":
        return _classify_conv(module)
    if attribute == "weight" and len(shape) == 2 and (isinstance(module, nn.Linear) or min(shape) > 1):
        return _classify_linear(place)
    if attribute in _of_experts(place):
        return _classify_experts(place)
    experts = max(_integer(module, name) for name in _EXPERT_COUNTS)
    if (
        "Expert" in type(module).__name__
        and experts > 1
        and len(shape) == 2
        and shape[0] % experts == 0 < shape[0] - experts
    ):
        return _Verdict(
            "matrix", f"matrices of {experts} experts, one below the other", (shape[0] // experts,) * experts
        )
    parametrisation = len(place.chain) > 1 and isinstance(place.chain[1], ParametrizationList)
    if len(shape) == 2 and min(shape) > 1 and ("base_layer" in module._modules or parametrisation):
        return _Verdict("matrix", "one factor of an adapter")
    return _Verdict("other", "bare parameter of a module that is no known layer")


def _is_embedding(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding | nn.EmbeddingBag) or _integer(module, "num_embeddings") > 0


def _classify_attention(place: _Place, module: nn.MultiheadAttention) -> _Verdict:
    if place.attribute == "in_proj_weight":
        return _Verdict("matrix", "attention, queries, keys and values in one", (module.embed_dim,) * 3)
    if place.attribute in ("bias_k", "bias_v") or len(place.shape) < 2:
        return _Verdict("bias", "bias of attention")
    return _Verdict("matrix", "attention projection")


def _classify_vector(place: _Place) -> _Verdict:
    module = place.chain[0]
    beside_a_matrix = hasattr(module, "parametrizations") or any(len(shape) >= 2 for shape in place.own.values())
    if place.attribute == "bias" and (beside_a_matrix or len(place.own) == 1):
        return _Verdict("bias", "bias")
    if not place.shape:
        return _Verdict("other", "scalar")
    if beside_a_matrix:
        return _Verdict("bias", "vector beside a matrix")
    if isinstance(module, nn.PReLU) or any(True for _ in module.children()):
        return _Verdict("other", "vector of a module that is no known layer")
    return _Verdict("norm", "module that holds vectors only")


def _classify_conv(module: _ConvNd) -> _Verdict:
    if module.transposed:
        return _Verdict("conv", "transposed convolution, stored as (in, out, *kernel)", transposed=True)
    if module.groups == module.in_channels > 1:
        return _Verdict("conv", "convolution, channel by channel")
    patches = module.kernel_size == module.stride and math.prod(module.kernel_size) > 1
    return _Verdict("conv", "convolution of patches, dense: hidden" if patches else "convolution")


def _classify_linear(place: _Place) -> _Verdict:
    rows, columns = place.shape
    transposed = _stored_transposed(place)
    reason = "linear layer" if isinstance(place.chain[0], nn.Linear) else "module with a two-dimensional weight"
    if transposed:
        rows, columns = columns, rows
        reason += ", stored as (in, out)"
    around = next((module for module in place.chain[1:] if _inside(module) is module), None)
    if rows == 3 * columns and any(_integer(around, name) for name in _HEAD_COUNTS):
        reason += "; perhaps queries, keys and values in one: if so, say fused="
    return _Verdict("matrix", reason, transposed=transposed)


def _of_experts(place: _Place) -> dict[str, tuple[int, ...]]:
    """The stacks of matrices, one for each expert, that a layer holds."""
    module = place.chain[0]
    counts = {_integer(module, name) for name in _EXPERT_COUNTS}
    named = "expert" in type(module).__name__.lower()
    stacks = {name: shape for name, shape in place.own.items() if len(shape) == 3 and min(shape[1:]) > 1}
    return {name: shape for name, shape in stacks.items() if "bias" not in name and (named or shape[0] in counts)}


def _classify_experts(place: _Place) -> _Verdict:
    transposed = _experts_transposed(place)
    stored = "experts, in, out" if transposed else "experts, out, in"
    reason = f"one matrix for each expert, stored as ({stored})"
    if transposed is None and place.shape[1] != place.shape[2]:
        reason += ", it is assumed; if not, say transposed="
    return _Verdict("matrix", reason, transposed=bool(transposed))


def _experts_transposed(place: _Place) -> bool | None:
    """Whether a layer's stacks of experts are stored as (experts, in, out); None where nothing says so.

    The matrices of an expert lead from the model's width to the feed-forward width and, the one that is called down, 2
    or out, back.
    """
    module, own = place.chain[0], place.own
    said = getattr(module, "is_transposed", None)  # transformers >= 5
    if isinstance(said, bool):
        return said
    config = getattr(module, "config", None)
    for name, (experts, first, second) in _of_experts(place).items():
        if first == second:
            continue
        bias = own.get(f"{name}_bias", own.get(name.replace("weight", "bias"), ()))
        if bias and bias[-1] in (first, second) and math.prod(bias) == experts * bias[-1]:
            return bias[-1] == second
        sizes = {_integer(module, "input_size"), _integer(module, "output_size")}
        if sizes == {first, second}:
            return _integer(module, "input_size") == first
        routers = [
            p.shape[1]
            for around in place.chain[1:3]
            for router, p in around.named_parameters()
            if router.endswith("weight") and p.ndim == 2 and p.shape[0] == experts
        ]
        width = _integer(module, "hidden_size") or _integer(config, "hidden_size")
        for known in [width, *routers]:
            if known in (first, second):
                return (known == first) != bool(re.search(r"down|2|out|wo$", name))
    return None


def _stored_transposed(place: _Place) -> bool:
    """Whether a layer's weight has its inputs as first dimension and its outputs as second."""
    module = place.chain[0]
    if isinstance(module, _ConvNd):
        return module.transposed
    if isinstance(module, nn.Linear) or len(place.shape) != 2:
        return False
    rows, columns = place.shape
    return (getattr(module, "nx", None), getattr(module, "nf", None)) == (rows, columns) or (
        rows != columns and place.own.get("bias") == (columns,)
    )


def _overridden(verdict: _Verdict, kind: ParameterKind, place: _Place, *, strict: bool) -> _Verdict:
    least = {"matrix": 2, "embedding": 2, "head": 2, "conv": 3}.get(kind, 0)
    if len(place.shape) < least and strict:
        raise ValueError(
            f"overrides say {kind!r} for parameter {place.name!r}, which needs {least} or more dimensions, but its "
            f"shape is {place.shape}; choose 'norm', 'bias' or 'other'"
        )
    if kind == verdict.kind or len(place.shape) < least:
        return verdict
    return _Verdict(kind, "said by overrides", transposed=verdict.transposed)


def _with_blocks(verdict: _Verdict, blocks: int | Sequence[int], place: _Place, *, strict: bool) -> _Verdict:
    rows = place.shape[-1 if verdict.transposed else -2] if len(place.shape) >= 2 else 0
    sizes = (rows // max(blocks, 1),) * blocks if isinstance(blocks, int) else tuple(blocks)
    if verdict.kind != "matrix" or len(sizes) < 2 or min(sizes) < 1 or sum(sizes) != rows:
        if not strict:
            return verdict
        raise ValueError(
            f"fused={blocks!r} does not fit parameter {place.name!r} ({verdict.kind}, shape {place.shape}): it "
            f"must be a matrix, and its output dimension of {rows} must split into two or more parts of the given sizes"
        )
    reason = verdict.reason.split("; perhaps ")[0]
    return replace(verdict, reason=f"{reason}, {len(sizes)} matrices in one", blocks=sizes)


class _Overrides:
    """What a user said about modules and names; remembers what was never used."""

    def __init__(self, argument: str, given: Mapping[Any, Any], names: dict[int, str]) -> None:
        self._argument = argument
        self._given: dict[str, Any] = {}
        self._used: set[str] = set()
        for key, value in given.items():
            if argument == "overrides" and value not in KINDS:
                raise ValueError(f"overrides: {value!r} is not a kind; choose one of {', '.join(KINDS)}")
            if argument == "transposed" and not isinstance(value, bool):
                raise ValueError(f"transposed says True or False for each name, got {value!r} for {key!r}")
            self._given[_module_name(argument, key, names)] = value

    def find(self, places: list[_Place]) -> Any:
        """The value for a parameter, or None; the most specific name wins."""
        for depth_from_end in range(max(place.name.count(".") for place in places) + 2 if self._given else 0):
            for place in places:
                parts = place.name.split(".")
                if depth_from_end > len(parts):
                    continue
                name = ".".join(parts[: len(parts) - depth_from_end])
                names = (name, plain_name(name))
                # The name itself goes before a pattern that matches it.
                exact = [pattern for pattern in self._given if pattern in names]
                for pattern in exact + [p for p in self._given if any(fnmatchcase(n, p) for n in names)]:
                    value = self._given[pattern]
                    self._used.add(pattern)
                    # A whole module's kind speaks of its matrices, and what is fused or transposed in it too.
                    of_matrices = self._argument != "overrides" or value in ("matrix", "conv", "embedding", "head")
                    if depth_from_end == 0 or not of_matrices or len(place.shape) >= 2:
                        return value
        return None

    def check_all_used(self) -> None:
        unused = [pattern for pattern in self._given if pattern not in self._used]
        if unused:
            what = "matrix" if self._argument == "transposed" else "parameter"
            raise ValueError(
                f"{self._argument} names {', '.join(map(repr, unused))}, which matches no {what} and no module "
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
    model: nn.Module,
    head: Named | Iterable[Named] | None,
    names: dict[int, str],
    places: dict[nn.Parameter, list[_Place]],
) -> dict[int, str]:
    """The output layers, by identity, and how they were found."""
    if head is None:
        declared = dict(_declared_heads(model))
        last = _last_linear(model, {parameter: place[0].shape for parameter, place in places.items()})
        inside = {id(module) for owner in declared.values() for module in owner.modules()}
        found = dict.fromkeys(map(id, declared), "output head, from get_output_embeddings()")
        if last is not None and id(last) not in inside:
            found[id(last)] = "output head, the last linear layer"
        return found
    modules = {plain_name(name): module for name, module in model.named_modules()} | dict(model.named_modules())
    chosen = set()
    for item in [head] if isinstance(head, Named) else head:
        name = _module_name("head", item, names)
        module = modules.get(name)
        owned = (place for several in places.values() for place in several if module in place.chain)
        if module is None or not any(len(place.shape) >= 2 for place in owned):
            close = [known for known in modules if name and known.endswith(f".{name}")]
            advice = f"perhaps {close[0]!r} is meant" if close else "see model.named_modules()"
            raise ValueError(f"head={name!r} names no module with a weight of two or more dimensions; {advice}")
        chosen.add(id(module))
    return dict.fromkeys(chosen, "output head, said by head=")


def _declared_heads(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Every output layer that a model, or a model inside it, names itself; and the model that names it."""
    output_of = getattr(module, "get_output_embeddings", None)
    if callable(output_of):
        output = output_of()
        if isinstance(output, nn.Module):
            yield output, module
        return
    for child in module.children():
        yield from _declared_heads(child)


def _last_linear(model: nn.Module, shapes: Mapping[nn.Parameter, tuple[int, ...]]) -> nn.Module | None:
    """The last linear layer in definition order, in its wrapper if it has one, unless it is plainly a hidden one.

    See `split_parameters`.
    """
    layers = list(_seen(model, set()))
    last, wrapper, width_read_later = None, None, False
    for outer, module in layers:
        if isinstance(module, nn.Linear):
            last, wrapper, width_read_later = module, outer, False
        elif last is not None and isinstance(module, _ConvNd | nn.RNNBase):
            last = None
        elif last is not None and not any(True for _ in module.children()):
            own = list(module.parameters(recurse=False))
            width_read_later |= bool(own) and all(shapes[tensor] == (last.out_features,) for tensor in own)
    if last is None or width_read_later:
        return None
    for _, container in layers:
        children = [_inside(child) for child in container.children()]
        for element in children:
            if element is last or all(module is not last for _, module in _seen(element, set())):
                continue
            twins = sum(type(other) is type(element) for other in children)
            if isinstance(container, nn.ModuleList) or (isinstance(container, nn.Sequential) and twins > 1):
                return None
            if isinstance(element, nn.MultiheadAttention):
                return None
    return None if isinstance(_inside(model), nn.MultiheadAttention) else wrapper


def _seen(module: nn.Module, before: set[int]) -> Iterator[tuple[nn.Module, nn.Module]]:
    """All modules once, each with the wrappers around it, without what the wrappers hold beside it."""
    inner = _inside(module)
    if id(inner) not in before:
        before.add(id(inner))
        yield module, inner
        for child in inner.children():
            yield from _seen(child, before)


def _integer(module: object, attribute: str) -> int:
    """An integer attribute of a module, or 0."""
    value = getattr(module, attribute, 0)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def is_vector(shape: Sequence[int]) -> bool:
    """Whether at most one dimension is larger than one."""
    return sum(size > 1 for size in shape) <= 1


def _copy_group(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, list) else value for key, value in group.items()}


def shape_text(shape: Sequence[int]) -> str:
    """A shape as tables show it."""
    return "x".join(map(str, shape)) or "scalar"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """A table of left-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
