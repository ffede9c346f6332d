"""The role of each parameter group of an optimizer that was made without `split_parameters`."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from warmgap._checks import warn
from warmgap.torch.split import ROLES, Role, aligned, is_vector, layouts_of, plain_name, role_of, shape_text

# What a name says, where there is no model to ask.
_HEAD_NAMES = re.compile(
    r"(lm_|mlm_|cls_)?head|classifier|score|fc|decoder|output(_layer)?|embed_out|unembed(ding)?|logits"
)
_EMBEDDING_NAMES = re.compile(r"(^|_)emb(ed|edding|eddings|ed_\w+)?(_|$)|^wte$|^wpe$|^shared$")
_MATRIX_NAMES = re.compile(r"^weight|proj|^lora_|^w\d|kernel")
_ADAPTER_NAMES = re.compile(r"lora_\w+|modules_to_save|default")


def assign_roles(
    optimizer: Optimizer,
    model: nn.Module | None = None,
    **sorting: Any,
) -> bool:
    """Gives every parameter group of an optimizer a role, splitting groups in place where they hold several.

    For an optimizer that was made without `split_parameters`, before or after its first steps: its state, which belongs
    to the parameters, is untouched. Every part of a group keeps its options, in the place of the group, in the order
    hidden, embedding, head, other, and within one role in the order it had. A group that has a role, or a `kind` to
    tell it by, stays as it is, so a second call changes nothing. The new parts also carry `kind`, `blocks` and
    `transposed` of hidden matrices, unless the optimizer is one of this library, whose step these would change.

    A scheduler notes the groups when it is made: call this before. State dicts saved after it load after it, with the
    same model and arguments. One that was saved before the split can be loaded before it or, where the optimizer loads
    as torch's do, after it (bitsandbytes' does not).

    Args:
        optimizer: Any optimizer, also as wrapped by Accelerate or Lightning.
        model: The model that it trains. Without it the names that torch keeps of named parameters are used, see
            `roles_from_names`.
        sorting: `head`, `overrides`, `fused` and `transposed`, as in `split_parameters`.

    Returns:
        Whether all groups have a role now. Without a model, False where the names do not say enough; then nothing was
        changed.

    Raises:
        TypeError: `optimizer` has no parameter groups, or `model` is not an `nn.Module`.
        ValueError: Of the optimizer's parameters none is the model's; or its groups can't be split; a role is unknown;
            and whatever `split_parameters` refuses.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False))
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        >>> assign_roles(optimizer, model)
        True
        >>> print(*(group["role"] for group in optimizer.param_groups))
        hidden embedding head other
    """
    optimizer = _innermost(optimizer)
    groups = optimizer.param_groups
    pending = [group for group in groups if role_of(group) is None]
    fields: Mapping[Tensor, dict[str, Any]] = {}
    if pending and _is_whole(optimizer):
        if model is None:
            return False
        raise ValueError(
            f"the groups of {type(optimizer).__name__} can't be split once it is made; give it those of "
            "split_parameters(model), or the scheduler no model where it steps all parameters alike"
        )
    if pending and model is not None:
        fields = layouts_of(model, **sorting)
        _check_known([p for group in pending for p in group["params"]], fields)
    elif pending:
        guessed = roles_from_names(optimizer)
        if guessed is None:
            return False
        fields = {parameter: {"role": role} for parameter, role in guessed.items()}
    _split_groups(optimizer, fields)
    return True


def guess_roles(optimizer: Optimizer) -> bool:
    """Does as `assign_roles` without a model, by the shapes of the parameters (`roles_from_shapes`).

    Returns:
        Whether they say enough.

    Warns:
        UserWarning: What was taken for embeddings and for a head.

    Example:
        >>> import warnings
        >>> import torch
        >>> sizes = [(9, 4), (8, 4), (4, 8), (9, 4)]
        >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(size)) for size in sizes], lr=0.01)
        >>> with warnings.catch_warnings(action="ignore"):
        ...     guess_roles(optimizer)
        True
        >>> print(*(group["role"] for group in optimizer.param_groups))
        hidden embedding head
    """
    optimizer = _innermost(optimizer)
    guessed = roles_from_shapes(optimizer)
    if guessed is None or _is_whole(optimizer):
        return False
    of_role = {name: [shape_text(p.shape) for p, role in guessed.items() if role == name] for name in ROLES}
    warn(
        f"the groups of {type(optimizer).__name__} have no roles; by order and shape {', '.join(of_role['embedding'])} "
        f"are taken for embeddings, and {', '.join(of_role['head']) or 'none'} for the head: make the groups by "
        "split_parameters(model), or give AdaptiveWarmup model=model"
    )
    _split_groups(optimizer, {parameter: {"role": role} for parameter, role in guessed.items()})
    return True


def _split_groups(optimizer: Any, fields: Mapping[Tensor, dict[str, Any]]) -> None:
    """Splits the groups without a role in place, by what is known of their parameters."""
    groups = optimizer.param_groups
    before = [list(group["params"]) for group in groups]
    parts: list[dict[str, Any]] = []
    origins: list[int] = []
    for index, group in enumerate(groups):
        role = role_of(group)
        group.update({} if role is None else {"role": role})
        found = [group] if role is not None else list(_parts(group, fields))
        parts += found
        origins += [index] * len(found)
    if len(parts) > len(groups):
        groups[:] = parts
        _load_from_before(optimizer, before, origins)


def roles_from_names(optimizer: Optimizer) -> dict[Tensor, Role] | None:
    """Guesses what every parameter is from its name and shape, without a model.

    The names are those that torch keeps where an optimizer was made from `model.named_parameters()`. They are taken
    only where at least one is plainly an embedding's or a head's, and none is a bare number.

    Args:
        optimizer: Any optimizer, also as wrapped by Accelerate or Lightning.

    Returns:
        The role of each parameter; None where there are no names, or they do not say enough.
    """
    roles: dict[Tensor, Role] = {}
    for group in _innermost(optimizer).param_groups:
        if len(group.get("param_names", ())) != len(group["params"]):
            return None
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            role = _role_by_name(name, parameter.shape)
            if role is None:
                return None
            roles[parameter] = role
    return roles if {"embedding", "head"} & set(roles.values()) else None


def roles_from_shapes(optimizer: Optimizer) -> dict[Tensor, Role] | None:
    """Guesses what every parameter is from shapes, in the order in which `model.parameters()` gives them.

    A layer's outputs are another one's inputs, so that both sides of a hidden matrix come again elsewhere. An embedding
    comes first, as (tokens, width), and its tokens are a side of nothing but a head. Others may follow it, as of
    positions, and the last matrix is a head, where one side of them is met nowhere else; only in a model of several
    layers, where every other shape is met again.

    Args:
        optimizer: Any optimizer, also as wrapped by Accelerate or Lightning.

    Returns:
        The role of each parameter; None where no embedding comes first, as in an MLP or a convnet.
    """
    parameters = [p for group in _innermost(optimizer).param_groups for p in group["params"]]
    matrices = [p for p in parameters if not _is_other(p.shape)]
    shapes = [tuple(p.shape) for p in matrices]
    sides = Counter(side for shape in shapes for side in {*(shape[:2] if len(shape) == 4 else shape[-2:])})
    if len(shapes) < 4 or len(shapes[0]) != 2:
        return None
    tokens, width = shapes[0]
    if tokens == width or sides[tokens] > min(2, shapes.count(shapes[0])) or sides[width] < 4:
        return None
    ends = [len(shape) == 2 and shape[1] == width and sides[shape[0]] == 1 for shape in shapes]
    leading = next((index for index, end in enumerate(ends[1:], 1) if not end), len(ends))
    untied = shapes[-1] == shapes[0]
    has_head = untied or ends[-1]
    if min(Counter(shapes[leading : len(shapes) - has_head]).values(), default=1) == 1:
        leading, has_head = 1, untied  # one layer, or a model of another kind
    roles: dict[Tensor, Role] = dict.fromkeys(parameters, "other") | dict.fromkeys(matrices, "hidden")
    roles |= dict.fromkeys(matrices[:leading], "embedding")
    return roles | dict.fromkeys(matrices[-1:] if has_head else (), "head")


def roles_table(optimizer: Optimizer, model: nn.Module | None = None) -> str:
    """A table to print: for each role how many parameters and entries an optimizer has, and which.

    Args:
        optimizer: Any optimizer, also as wrapped by Accelerate or Lightning.
        model: The model, for names where the groups have none, and to show what the optimizer does not step.

    Returns:
        Lines of role, parameters, entries and names, in which numbers are written as `*`.

    Example:
        >>> import torch
        >>> from warmgap.torch import split_parameters
        >>> model = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 9))
        >>> print(roles_table(torch.optim.SGD(split_parameters(model), lr=0.1)))
        role       parameters  entries  names
        hidden     1           16       1.weight
        embedding  1           36       0.weight
        head       1           36       2.weight
        other      2           13       1.bias, 2.bias
    """
    known = {} if model is None else {p: name for name, p in model.named_parameters()}
    members: dict[str, list[tuple[str, Tensor]]] = {role: [] for role in (*ROLES, "no role", "not in the optimizer")}
    for group in _innermost(optimizer).param_groups:
        named = dict(zip(group["params"], group.get("param_names", ()), strict=False))
        members[role_of(group) or "no role"] += [
            (named.pop(p, known.pop(p, shape_text(p.shape))), p) for p in group["params"]
        ]
    members["not in the optimizer"] = [(name, p) for p, name in known.items() if p.requires_grad]
    lines = [("role", "parameters", "entries", "names")]
    for role, pairs in members.items():
        short = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name, _ in pairs))
        text = ", ".join(short[:3]) + (f" and {len(short) - 3} more" if len(short) > 3 else "")
        if pairs:
            lines.append((role, str(len(pairs)), f"{sum(p.numel() for _, p in pairs):,}", text))
    return aligned(lines)


def _innermost(optimizer: Any) -> Any:
    """The optimizer inside of wrappers."""
    if not hasattr(optimizer, "param_groups"):
        raise TypeError(f"an optimizer with param_groups is needed, got {type(optimizer).__name__}")
    inner = getattr(optimizer, "optimizer", None)
    return _innermost(inner) if hasattr(inner, "param_groups") else optimizer


def _is_whole(optimizer: Any) -> bool:
    """Whether an optimizer's groups can't be split once it is made."""
    return isinstance(optimizer, LBFGS) or isinstance(getattr(optimizer, "optim", None), Optimizer)


def _check_known(parameters: list[Tensor], fields: Mapping[Tensor, object]) -> None:
    unknown = [shape_text(p.shape) for p in parameters if p not in fields]
    if unknown and len(unknown) == len(parameters):
        raise ValueError(
            f"none of the optimizer's {len(unknown)} parameters is the model's; pass the model that it trains, or make "
            "an optimizer that keeps copies of its own from split_parameters(model)"
        )
    if unknown:
        warn(
            f"the optimizer has {len(unknown)} parameters that the model does not have (shapes "
            f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}); their role is 'other'",
        )


def _parts(group: dict[str, Any], fields: Mapping[Tensor, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The group itself, cut down to its first role, and a group like it for each other role and layout."""
    params, names, options = group["params"], group.get("param_names"), dict(group)
    members: dict[tuple[tuple[str, Any], ...], list[int]] = {}
    for index, p in enumerate(params):
        said = fields.get(p, {"role": "other"})
        # Our own optimizers have chosen a step already, and of the rest only the role matters.
        kept = {"role": said["role"]} if "norm" in group or said["role"] == "other" else said
        members.setdefault(tuple(kept.items()), []).append(index)
    if not params:
        yield {**group, "role": "other"}
    for number, layout in enumerate(sorted(members, key=lambda layout: ROLES.index(dict(layout)["role"]))):
        # A rate that is a tensor is written in place: every group needs its own.
        own = {key: v.detach().clone() if isinstance(v, Tensor) else v for key, v in options.items()}
        part = own if number else group
        part["params"] = [params[index] for index in members[layout]]
        if names is not None:
            part["param_names"] = [names[index] for index in members[layout]]
        for key, value in layout:
            part.setdefault(key, value)
        yield part


def _load_from_before(optimizer: Any, before: list[list[Tensor]], origins: list[int]) -> None:
    """Lets an optimizer load a state dict that was saved before its groups were split; `origins` are their groups."""
    sizes = [len(params) for params in before]
    place = {p: index for index, p in enumerate(p for params in before for p in params)}
    taken = [[place[p] for p in group["params"]] for group in optimizer.param_groups]

    def split_like_the_groups(optimizer: Any, state: dict[str, Any]) -> dict[str, Any] | None:
        saved, groups = state["param_groups"], optimizer.param_groups
        if [len(group["params"]) for group in saved] != sizes or len(groups) != len(origins):
            return None
        lists = {key: [each for group in saved for each in group.get(key, ())] for key in ("params", "param_names")}
        parts = []
        for group, origin, indices in zip(groups, origins, taken, strict=True):
            own = {key: [each[index] for index in indices] for key, each in lists.items() if each}
            layout = {key: group[key] for key in ("role", "kind", "blocks", "transposed") if key in group}
            parts.append({**saved[origin], **layout, **own})
        return {**state, "param_groups": parts}

    if hasattr(optimizer, "register_load_state_dict_pre_hook"):
        optimizer.register_load_state_dict_pre_hook(split_like_the_groups)


def _role_by_name(name: str, shape: Sequence[int]) -> Role | None:
    """What a name plainly says; None where it says nothing."""
    parts = [part for part in plain_name(name).split(".") if not _ADAPTER_NAMES.fullmatch(part)]
    *modules, attribute = parts
    if _is_other(shape):
        return "other"
    if all(part.isdecimal() for part in modules) and attribute.startswith("weight"):
        return None
    layer = modules[-1] if modules else ""
    if _HEAD_NAMES.fullmatch(layer) and not any(part.isdecimal() for part in modules):
        return "head"
    if len(shape) == 2 and _EMBEDDING_NAMES.search(layer) and not re.search("proj|patch", layer):
        return "embedding"
    return "hidden" if _MATRIX_NAMES.search(attribute) and "bias" not in attribute else "other"


def _is_other(shape: Sequence[int]) -> bool:
    """Whether a shape is a vector's, or that of positions that are added to a sequence."""
    return is_vector(shape) or (len(shape) == 3 and shape[0] == 1)
