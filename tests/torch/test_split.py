"""Parameters are sorted by the module that owns them, each exactly once; every group of an optimizer gets a role."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import bitsandbytes
import lightning
import peft
import pytest
import pytorch_optimizer
import torch
import transformers
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.utils import parametrize
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from warmgap.torch import Gluon, Lion, Muon, NormalizedSGD, Scion, Signum
from warmgap.torch.roles import assign_roles, guess_roles, roles_from_names, roles_from_shapes, roles_table
from warmgap.torch.split import KINDS, ROLES, ParameterSplit, role_of, split_parameters


def llama_config(**changes: Any) -> LlamaConfig:
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    return LlamaConfig(**{**sizes, "max_position_embeddings": 32, "pad_token_id": 0, **changes})


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_heads = 2
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))
        self.gamma = nn.Parameter(torch.ones(width))


class VisionTransformer(nn.Module):
    def __init__(self, width: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, width))
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))


def convnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        nn.ConvTranspose1d(8, 4, 3),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.Linear(16, 5),
    )


MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(llama_config()),
    "llama tied": lambda: LlamaForCausalLM(llama_config(tie_word_embeddings=True)),
    "llama without head": lambda: LlamaModel(llama_config()),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2)),
    "bert": lambda: BertForMaskedLM(
        BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    ),
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=4,
        )
    ),
    "vit": VisionTransformer,
    "transformer": lambda: nn.Transformer(16, 2, 1, 1, 24, batch_first=True),
    "convnet": convnet,
    "lstm": lambda: nn.Sequential(nn.LSTM(4, 6, num_layers=2, proj_size=3), nn.GRU(4, 6)),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 8)), nn.Linear(8, 3)),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return MODELS[request.param]()


def kinds(split: ParameterSplit) -> dict[str, str | None]:
    return {row.name: row.kind for row in split.rows}


def with_kind(split: ParameterSplit, kind: str | None) -> set[str]:
    return {row.name for row in split.rows if row.kind == kind}


def group_of(split: ParameterSplit, name: str) -> dict[str, Any]:
    return next(group for group in split if name in group["param_names"])


def test_every_parameter_comes_exactly_once_under_its_own_name(model: nn.Module) -> None:
    split = split_parameters(model)
    roles = {"matrix": "hidden", "conv": "hidden", "embedding": "embedding", "head": "head"}
    assert all(group["role"] == roles.get(group["kind"], "other") for group in split)
    assert all(row.role == (row.kind and roles.get(row.kind, "other")) for row in split.rows)
    named = dict(model.named_parameters())
    pairs = [pair for group in split for pair in zip(group["param_names"], group["params"], strict=True)]
    assert len(pairs) == len(named)
    assert all(named[name] is parameter for name, parameter in pairs)
    assert [row.name for row in split.rows] == list(named)
    assert [KINDS.index(group["kind"]) for group in split] == sorted(KINDS.index(group["kind"]) for group in split)


@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.SGD])
def test_torch_takes_the_groups_and_two_optimizers_do_not_share_them(
    model: nn.Module, optimizer_class: type[torch.optim.Optimizer]
) -> None:
    split = split_parameters(model)
    before = [set(group) for group in split]
    first = optimizer_class(split, lr=0.5, weight_decay=0.1)  # type: ignore[call-arg]
    second = optimizer_class(split, lr=0.25, weight_decay=0.2)  # type: ignore[call-arg]
    assert [set(group) for group in split] == before
    assert {group["lr"] for group in first.param_groups} == {0.5}
    assert {group["lr"] for group in second.param_groups} == {0.25}
    first.param_groups[0]["params"].clear()
    assert second.param_groups[0]["params"]
    for group in second.param_groups:
        assert group["weight_decay"] == (0.0 if group["kind"] in ("norm", "bias") else group["weight_decay"])
    state = second.state_dict()
    second.load_state_dict(state)
    assert state["param_groups"][0]["param_names"] == split[0]["param_names"]


@pytest.mark.parametrize("optimizer_class", [Gluon, Lion, Muon, NormalizedSGD, Scion, Signum])
def test_our_optimizers_take_the_groups_and_move_every_parameter(
    model: nn.Module, optimizer_class: Callable[..., torch.optim.Optimizer]
) -> None:
    optimizer = optimizer_class(split_parameters(model), lr=0.01)
    torch.manual_seed(0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    for old, parameter in zip(before, model.parameters(), strict=True):
        assert parameter.isfinite().all()
        assert not parameter.equal(old)


def test_untied_llama() -> None:
    split = split_parameters(LlamaForCausalLM(llama_config()))
    assert with_kind(split, "embedding") == {"model.embed_tokens.weight"}
    assert with_kind(split, "head") == {"lm_head.weight"}
    norms = {
        f"model.layers.{layer}.{norm}_layernorm.weight" for layer in (0, 1) for norm in ("input", "post_attention")
    }
    assert with_kind(split, "norm") == {*norms, "model.norm.weight"}
    assert len(with_kind(split, "matrix")) == 2 * 7
    assert {group["kind"] for group in split} == {"matrix", "embedding", "head", "norm"}
    assert {group["kind"]: group.get("weight_decay") for group in split} == {
        "matrix": None,
        "embedding": None,
        "head": None,
        "norm": 0.0,
    }


def test_a_tied_head_is_an_embedding_and_is_there_once() -> None:
    split = split_parameters(LlamaForCausalLM(llama_config(tie_word_embeddings=True)))
    assert with_kind(split, "embedding") == {"model.embed_tokens.weight"}
    assert with_kind(split, "head") == set()
    assert "tied with lm_head.weight" in repr(split)


def test_a_tied_head_is_an_embedding_also_where_the_head_is_defined_first() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(6, 9, bias=False)
            self.table = nn.Embedding(9, 6)
            self.table.weight = self.out.weight

    split = split_parameters(Tied())
    assert kinds(split) == {"out.weight": "embedding"}
    assert kinds(split_parameters(Tied(), overrides={"table.weight": "head"})) == {"out.weight": "head"}


@pytest.mark.parametrize(
    ("build", "head"),
    [
        (lambda: LlamaModel(llama_config()), set()),
        (lambda: LlamaForSequenceClassification(llama_config(num_labels=3)), {"score.weight"}),
        (lambda: nn.Transformer(16, 2, 1, 1, 24, batch_first=True), set()),
        (lambda: nn.TransformerEncoderLayer(16, 2, 24), set()),
        (lambda: nn.MultiheadAttention(16, 2), set()),
        (lambda: nn.Sequential(nn.MultiheadAttention(16, 2)), set()),
        (lambda: nn.Sequential(Block(8), Block(8)), set()),
        (lambda: nn.ModuleList([Block(8)]), set()),
        (VisionTransformer, {"head.weight"}),
        (lambda: nn.DataParallel(VisionTransformer()), {"module.head.weight"}),
        (lambda: nn.DataParallel(LlamaForCausalLM(llama_config())), {"module.lm_head.weight"}),
        (convnet, {"6.weight"}),
        (lambda: nn.Sequential(nn.Linear(8, 2), nn.Conv2d(1, 1, 3)), set()),
        (lambda: nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 784)), {"2.weight"}),
    ],
)
def test_which_layer_is_the_head(build: Callable[[], nn.Module], head: set[str]) -> None:
    assert with_kind(split_parameters(build()), "head") == head


def test_conv1d_of_transformers_is_a_matrix_stored_as_in_out() -> None:
    model = MODELS["gpt2"]()
    split = split_parameters(model, fused={"*.c_attn": 3})
    attention = group_of(split, "transformer.h.0.attn.c_attn.weight")
    assert (attention["kind"], attention["transposed"], attention["blocks"]) == ("matrix", True, (16, 16, 16))
    square = group_of(split, "transformer.h.0.attn.c_proj.weight")
    assert (square["kind"], square["transposed"], "blocks" in square) == ("matrix", True, False)
    assert group_of(split, "transformer.h.0.attn.c_attn.bias")["kind"] == "bias"
    assert with_kind(split, "embedding") == {"transformer.wte.weight", "transformer.wpe.weight"}
    assert not with_kind(split, "other")


def test_a_transposed_weight_is_told_by_its_bias_too() -> None:
    class InOut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 6))
            self.bias = nn.Parameter(torch.zeros(6))

    assert split_parameters(InOut())[0]["transposed"] is True


def test_transposed_convolutions_are_stored_with_inputs_first() -> None:
    split = split_parameters(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 3), nn.ConvTranspose1d(4, 4, 3, groups=2))
    )
    assert [(group["kind"], group.get("transposed", False)) for group in split if group["kind"] != "bias"] == [
        ("conv", False),
        ("conv", True),
        ("other", False),
    ]
    reasons = {row.name: row.reason for row in split.rows}
    assert reasons["2.weight"] == "transposed convolution of 2 groups"
    head = split_parameters(nn.ModuleList([nn.Conv1d(3, 4, 1), nn.ConvTranspose1d(4, 2, 1)]), head="1")
    assert [(group["kind"], group.get("transposed", False)) for group in head][:2] == [("conv", False), ("head", True)]


def test_experts_are_stacks_of_matrices() -> None:
    split = split_parameters(MODELS["mixtral"]())
    experts = {row.name: row.shape for row in split.rows if "experts" in row.name}
    assert experts
    assert all(len(shape) == 3 for shape in experts.values())
    assert set(experts) <= with_kind(split, "matrix")


def test_vision_transformer() -> None:
    split = split_parameters(VisionTransformer())
    assert with_kind(split, "conv") == {"patch_embed.weight"}
    assert with_kind(split, "other") == {"cls_token", "pos_embed", "logit_scale", "blocks.0.gamma", "blocks.1.gamma"}
    no_decay = {name for group in split if group.get("weight_decay") == 0.0 for name in group["param_names"]}
    assert (
        with_kind(split, "norm")
        | with_kind(split, "bias")
        | {"cls_token", "logit_scale", "blocks.0.gamma", "blocks.1.gamma"}
        == no_decay
    )
    # Told apart by the module around them: both are three times as high as wide, only one is inside attention.
    reasons = {row.name: row.reason for row in split.rows}
    assert "fused=" in reasons["blocks.0.qkv.weight"]
    assert "fused=" not in reasons["blocks.0.mlp.0.weight"]
    assert "blocks" not in group_of(split, "blocks.0.qkv.weight")


def test_fused_projections_torch_itself_knows() -> None:
    attention = split_parameters(nn.MultiheadAttention(6, 2, add_bias_kv=True))
    assert kinds(attention) == {
        "in_proj_weight": "matrix",
        "in_proj_bias": "bias",
        "bias_k": "bias",
        "bias_v": "bias",
        "out_proj.weight": "matrix",
        "out_proj.bias": "bias",
    }
    assert group_of(attention, "in_proj_weight")["blocks"] == (6, 6, 6)
    apart = split_parameters(nn.MultiheadAttention(6, 2, kdim=4, vdim=5, bias=False))
    assert with_kind(apart, "matrix") == {"q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"}
    recurrent = split_parameters(nn.ModuleList([nn.LSTM(4, 6, proj_size=3), nn.GRU(4, 6), nn.RNN(4, 6)]))
    assert group_of(recurrent, "0.weight_ih_l0")["blocks"] == (6,) * 4
    assert "blocks" not in group_of(recurrent, "0.weight_hr_l0")
    assert group_of(recurrent, "1.weight_hh_l0")["blocks"] == (6,) * 3
    assert "blocks" not in group_of(recurrent, "2.weight_hh_l0")
    assert group_of(recurrent, "0.bias_ih_l0")["kind"] == "bias"


@pytest.mark.parametrize("blocks", [(16, 4, 4), [16, 4, 4]])
def test_fused_parts_may_differ_in_size(blocks: Any) -> None:
    model = nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 3))
    split = split_parameters(model, fused={model[0]: blocks})
    assert group_of(split, "0.weight")["blocks"] == (16, 4, 4)
    assert "3 matrices in one" in repr(split)


@pytest.mark.parametrize("blocks", [5, 1, 0, -2, (8, 8), (24,), (0, 24), ()])
def test_fused_parts_must_fill_the_matrix(blocks: Any) -> None:
    with pytest.raises(ValueError, match=r"does not fit parameter '0\.weight'.*output dimension of 24"):
        split_parameters(nn.Sequential(nn.Linear(16, 24), nn.Linear(24, 3)), fused={"0": blocks})


def test_norm_layers_are_told_by_structure() -> None:
    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))
            self.shift = nn.Parameter(torch.ones(4))

    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.ones(4))

    model = nn.ModuleDict(
        {"gain": Gain(), "shift": Shift(), "image": nn.LayerNorm([2, 3, 3]), "prelu": nn.PReLU(4), "rms": nn.RMSNorm(4)}
    )
    assert kinds(split_parameters(model)) == {
        "gain.scale": "norm",
        "gain.shift": "norm",
        "shift.bias": "bias",
        "image.weight": "norm",
        "image.bias": "norm",
        "prelu.weight": "other",
        "rms.weight": "norm",
    }


def test_the_parts_of_a_weight_norm_are_not_matrices() -> None:
    split = split_parameters(MODELS["weight norm"]())
    assert kinds(split) == {
        "0.bias": "bias",
        "0.parametrizations.weight.original0": "other",
        "0.parametrizations.weight.original1": "other",
        "1.weight": "head",
        "1.bias": "bias",
    }
    assert group_of(split, "0.parametrizations.weight.original0")["weight_decay"] == 0.0
    assert "weight_decay" not in group_of(split, "0.parametrizations.weight.original1")


def test_a_parametrised_weight_of_one_tensor_is_what_its_layer_says() -> None:
    model = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)), nn.utils.parametrizations.orthogonal(nn.Linear(8, 3))
    )
    assert kinds(split_parameters(model)) == {
        "0.bias": "bias",
        "0.parametrizations.weight.original": "matrix",
        "1.bias": "bias",
        "1.parametrizations.weight.original": "head",
    }


def test_frozen_parameters_are_left_out_and_listed() -> None:
    model = LlamaForCausalLM(llama_config())
    model.model.embed_tokens.requires_grad_(False)
    split = split_parameters(model)
    assert with_kind(split, None) == {"model.embed_tokens.weight"}
    assert "embedding" not in {group["kind"] for group in split}
    assert "left out  frozen" in repr(split)


def test_the_table() -> None:
    text = str(
        split_parameters(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.RMSNorm(4), nn.Linear(4, 9, bias=False)))
    )
    assert text.splitlines() == [
        "parameter  shape  module     kind       why",
        "0.weight   9x4    Embedding  embedding  embedding layer",
        "1.weight   4x4    Linear     matrix     linear layer",
        "1.bias     4      Linear     bias       bias; no weight decay",
        "2.weight   4      RMSNorm    norm       norm layer; no weight decay",
        "3.weight   9x4    Linear     head       output head, the last linear layer",
    ]


def test_the_head_can_be_said() -> None:
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "classes": nn.Linear(4, 3), "boxes": nn.Linear(4, 2)})
    assert with_kind(split_parameters(model), "head") == {"boxes.weight"}
    assert with_kind(split_parameters(model, head="classes"), "head") == {"classes.weight"}
    assert with_kind(split_parameters(model, head=[model["classes"], "boxes"]), "head") == {
        "classes.weight",
        "boxes.weight",
    }
    assert with_kind(split_parameters(model, head=()), "head") == set()
    assert with_kind(split_parameters(LlamaForCausalLM(llama_config()), head=()), "head") == set()


@pytest.mark.parametrize("head", ["nothing", "relu", "norm", nn.Linear(2, 2)])
def test_a_head_that_is_not_there(head: Any) -> None:
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "relu": nn.ReLU(), "norm": nn.LayerNorm(4)})
    with pytest.raises(ValueError, match="head"):
        split_parameters(model, head=head)
    with pytest.raises(ValueError, match=r"head='body' names no module .* perhaps 'inner\.body' is meant"):
        split_parameters(nn.ModuleDict({"inner": model}), head="body")


def test_a_head_of_several_layers() -> None:
    model = nn.ModuleDict(
        {
            "body": nn.Linear(4, 4),
            "top": nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
            "aux": Block(4),
        }
    )
    split = split_parameters(model, head="top")
    assert with_kind(split, "head") == {"top.0.weight", "top.2.weight"}
    assert with_kind(split, "norm") >= {"top.1.weight", "top.1.bias"}


def test_overrides_by_name_by_pattern_and_by_module() -> None:
    model = VisionTransformer()
    split = split_parameters(
        model,
        overrides={"pos_embed": "embedding", "*.qkv": "other", "blocks.1.qkv": "matrix", model.patch_embed: "matrix"},
    )
    found = kinds(split)
    assert found["pos_embed"] == "embedding"
    assert found["blocks.0.qkv.weight"] == "other"
    # `other` takes all of the module, `matrix` only what can be one.
    assert found["blocks.0.qkv.bias"] == "other"
    assert found["patch_embed.weight"] == "matrix"
    assert found["patch_embed.bias"] == "bias"
    assert found["blocks.1.mlp.0.weight"] == "matrix"


def test_the_inner_name_goes_before_the_outer_one() -> None:
    model = VisionTransformer()
    found = kinds(
        split_parameters(model, overrides={model: "other", "blocks.1": "norm", "blocks.1.qkv.weight": "matrix"})
    )
    assert found["blocks.1.qkv.weight"] == "matrix"
    assert found["blocks.1.proj.weight"] == "norm"
    assert found["blocks.0.proj.weight"] == "other"


def test_overrides_that_can_not_be() -> None:
    model = VisionTransformer()
    with pytest.raises(ValueError, match="'hidden' is not a kind; choose one of matrix"):
        split_parameters(model, overrides={"head": "hidden"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="'backbone', which matches no parameter"):
        split_parameters(model, overrides={"backbone": "other"})
    with pytest.raises(ValueError, match="fused names 'backbone'"):
        split_parameters(model, fused={"backbone": 3})
    with pytest.raises(ValueError, match=r"'conv' for parameter 'head\.weight', which needs 3 or more"):
        split_parameters(model, overrides={"head": "conv"})
    with pytest.raises(ValueError, match=r"'matrix' for parameter 'head\.bias'"):
        split_parameters(model, overrides={"head.bias": "matrix"})
    with pytest.raises(ValueError, match="names a Linear that is not in this model"):
        split_parameters(model, overrides={nn.Linear(2, 2): "other"})
    with pytest.raises(TypeError, match="got Parameter"):
        split_parameters(model, overrides={model.pos_embed: "other"})  # type: ignore[dict-item]


def test_models_that_can_not_be_trained() -> None:
    with pytest.raises(ValueError, match="no parameters"):
        split_parameters(nn.Sequential(nn.ReLU()))
    with pytest.raises(ValueError, match="all 2 parameters are frozen"):
        split_parameters(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(ValueError, match=r"'0\.weight' is not initialised yet"):
        split_parameters(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(TypeError, match="got generator"):
        split_parameters(nn.Linear(2, 2).parameters())  # type: ignore[arg-type]


# --- wrapped modules


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture
def two_ranks() -> Iterator[None]:
    distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    distributed.destroy_process_group()


def in_fsdp1(model: nn.Module, original: bool = True) -> nn.Module:
    policy = ModuleWrapPolicy({nn.Linear}) if original else None
    return FullyShardedDataParallel(
        model, use_orig_params=original, device_id=torch.device("cpu"), auto_wrap_policy=policy
    )


def in_fsdp2(model: nn.Sequential) -> nn.Module:
    fully_shard(model[0])
    fully_shard(model)
    return model


def compiled(model: nn.Module) -> nn.Module:
    wrapped = torch.compile(model, backend="eager")
    assert isinstance(wrapped, nn.Module)
    return wrapped


WRAPPERS: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "compiled": compiled,
    "compiled layers": lambda model: nn.Sequential(*map(compiled, model)),
    "data parallel": nn.DataParallel,
    "distributed": nn.parallel.DistributedDataParallel,
    "FSDP1": in_fsdp1,
    "FSDP2": in_fsdp2,
    "checkpointed": lambda model: nn.Sequential(*(checkpoint_wrapper(layer) for layer in model)),
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled and distributed": lambda model: nn.parallel.DistributedDataParallel(compiled(model)),
}


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.filterwarnings("ignore:.*FSDP.*:FutureWarning", "ignore:.*fully_shard.*")
def test_a_wrapped_model_is_split_like_the_model(wrap: str, two_ranks: None) -> None:
    plain, wrapped = split_parameters(mlp()), split_parameters(WRAPPERS[wrap](mlp()))
    assert [(row.shape, row.kind, row.reason) for row in wrapped.rows] == [
        (row.shape, row.kind, row.reason) for row in plain.rows
    ]
    # FSDP1 shows vectors, cut; their shapes are those of the wholes all the same.
    assert (wrap == "FSDP1") == all(p.ndim == 1 for p in WRAPPERS[wrap](mlp()).parameters())
    said = split_parameters(WRAPPERS[wrap](mlp()), head="2", overrides={"0.weight": "other"})
    assert [row.kind for row in said.rows if row.kind != "bias"] == ["other", "head", "matrix"]


@pytest.mark.filterwarnings("ignore:.*FSDP.*:FutureWarning")
def test_parameters_that_fsdp_made_one_are_refused(two_ranks: None) -> None:
    with pytest.raises(ValueError, match=r"_flat_param' is many in one.*use_orig_params=True"):
        split_parameters(in_fsdp1(mlp(), original=False))


def test_models_inside_a_lightning_module() -> None:
    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = LlamaForCausalLM(llama_config())
            self.loss = nn.CrossEntropyLoss(weight=torch.ones(40))
            self.value = nn.Sequential(nn.Dropout(), nn.Linear(16, 1))

    split = split_parameters(Module())
    assert with_kind(split, "head") == {"model.lm_head.weight", "value.1.weight"}
    assert with_kind(split, "embedding") == {"model.model.embed_tokens.weight"}


LORA = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize(
    ("config", "found"),
    [
        (peft.LoraConfig(**LORA), {"lora_A": "matrix", "lora_B": "matrix"}),
        (peft.LoraConfig(**LORA, use_dora=True), {"lora_A": "matrix", "lora_magnitude_vector": "norm"}),
        (
            peft.LoraConfig(**LORA, modules_to_save=["lm_head", "embed_tokens"]),
            {"lora_A": "matrix", "lm_head": "head", "embed_tokens": "embedding"},
        ),
        (
            peft.LoraConfig(**{**LORA, "target_modules": ["lm_head", "embed_tokens", "up_proj"]}),
            {
                "lm_head.lora_A": "head",
                "lm_head.lora_B": "head",
                "embedding_A": "embedding",
                "up_proj.lora_B": "matrix",
            },
        ),
        (peft.LoraConfig(**LORA, trainable_token_indices=[1, 2]), {"trainable_tokens_delta": "embedding"}),
        (peft.LoHaConfig(**LORA), {"hada_w1_a": "matrix", "hada_w2_b": "matrix"}),
        (
            peft.AdaLoraConfig(target_modules=["q_proj"], total_step=9, task_type="CAUSAL_LM"),
            {"lora_A": "matrix", "lora_B": "matrix", "lora_E": "other"},
        ),
        (peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]), {"ia3_l": "other"}),
        (peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), {"prompt_encoder": "embedding"}),
    ],
    ids=["LoRA", "DoRA", "saved", "head and embedding", "tokens", "LoHa", "AdaLoRA", "IA3", "prompt"],
)
def test_what_peft_trains_is_what_its_layer_is(config: peft.PeftConfig, found: dict[str, str]) -> None:
    split = split_parameters(peft.get_peft_model(LlamaForCausalLM(llama_config()), config))
    for name, kind in found.items():
        assert {row.kind for row in split.rows if name in row.name and row.kind} == {kind}
    assert {row.kind for row in split.rows if ".original_module." in row.name or ".base_layer." in row.name} <= {None}


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_a_head_in_a_wrapper_can_be_said_by_either_name() -> None:
    config = peft.LoraConfig(**LORA, modules_to_save=["lm_head"])
    model = peft.get_peft_model(LlamaForCausalLM(llama_config()), config)
    inner = "base_model.model.lm_head.modules_to_save.default"
    for head in ("base_model.model.lm_head", inner):
        assert with_kind(split_parameters(model, head=head), "head") == {f"{inner}.weight"}
    (group,) = (group for group in Muon(split_parameters(model)).param_groups if group["role"] == "head")
    assert group["norm"] is None


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_what_is_fused_in_a_layer_is_not_in_its_adapters() -> None:
    model = MODELS["gpt2"]()
    config = peft.LoraConfig(r=3, target_modules=["c_attn"], modules_to_save=["c_fc"], fan_in_fan_out=True)
    split = split_parameters(peft.get_peft_model(model, config), fused={"*c_attn": 3, "*c_fc": 2})
    assert {group.get("blocks") for group in split if group["kind"] == "matrix"} == {None, (32, 32)}


def test_adapters_without_a_model_that_knows_its_head() -> None:
    model = peft.get_peft_model(mlp(), peft.LoraConfig(r=2, target_modules=["0", "4"]))
    assert {row.name.split(".")[2]: row.kind for row in split_parameters(model).rows if row.kind} == {
        "0": "matrix",
        "4": "head",
    }


def test_adapters_that_are_parametrizations() -> None:
    class Pair(nn.Module):
        def __init__(self, rows: int, columns: int) -> None:
            super().__init__()
            self.up, self.down = nn.Parameter(torch.zeros(rows, 2)), nn.Parameter(torch.ones(2, columns))

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight + self.up @ self.down

    model = mlp()
    parametrize.register_parametrization(model[2], "weight", Pair(16, 16))
    parametrize.register_parametrization(model[4], "weight", Pair(3, 16))
    found = kinds(split_parameters(model))
    assert {found[f"2.parametrizations.weight.{name}"] for name in ("original", "0.up", "0.down")} == {"matrix"}
    assert {found[f"4.parametrizations.weight.{name}"] for name in ("original", "0.up", "0.down")} == {"head"}


def test_quantised_layers_are_frozen_and_their_biases_are_not() -> None:
    model = nn.Sequential(nn.Embedding(64, 64), bitsandbytes.nn.Linear4bit(64, 64), nn.Linear(64, 64))
    assert kinds(split_parameters(model, fused={"1": 2})) == {
        "0.weight": "embedding",
        "1.weight": None,
        "1.bias": "bias",
        "2.weight": "head",
        "2.bias": "bias",
    }


# --- experts

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
EXPERTS: dict[str, tuple[str, dict[str, Any], str, bool]] = {
    "GptOss": ("ForCausalLM", {"num_local_experts": 4, "head_dim": 8}, "intermediate_size", True),
    "AriaText": ("ForCausalLM", {"moe_num_experts": 4, "moe_num_shared_experts": 1}, "intermediate_size", True),
    "Llama4": (
        "ForCausalLM",
        {"num_local_experts": 4, "head_dim": 8, "intermediate_size_mlp": 64},
        "intermediate_size",
        True,
    ),
    "Mixtral": ("ForCausalLM", {"num_local_experts": 4}, "intermediate_size", False),
    "Qwen3Moe": ("ForCausalLM", {"num_experts": 4, "head_dim": 8}, "moe_intermediate_size", False),
    "DeepseekV3": (
        "ForCausalLM",
        {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 0}
        | {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
        "moe_intermediate_size",
        False,
    ),
    "GraniteMoe": ("ForCausalLM", {"num_local_experts": 4}, "intermediate_size", False),
    "JetMoe": ("ForCausalLM", {"num_local_experts": 4, "kv_channels": 8}, "intermediate_size", False),
}


@pytest.mark.parametrize("width", [48, 32, 16])  # with 16 the matrices up to the feed-forward layer are square
@pytest.mark.parametrize("family", EXPERTS)
def test_how_experts_are_stored_and_fused(family: str, width: int) -> None:
    task, sizes, feed_forward, transposed = EXPERTS[family]
    config_class = getattr(transformers, {"Llama4": "Llama4TextConfig"}.get(family, f"{family}Config"))
    model = getattr(transformers, family + task)(config_class(**{**SIZES, **sizes, feed_forward: width}))
    up = "*.mlp.input_linear.weight" if family == "JetMoe" else "*.experts.gate_up_proj"
    split = split_parameters(model, fused={up: 2})
    stacks = {row.name: row.shape for row in split.rows if len(row.shape) == 3 and row.kind == "matrix"}
    assert len(stacks) == (4 if family == "JetMoe" else 2)
    for group in split:
        if set(group["param_names"]) & set(stacks):
            assert group.get("transposed", False) is transposed
    (fused,) = (group for group in split if "blocks" in group)
    assert fused["blocks"] == (width, width)
    biases = {row.name for row in split.rows if row.name.endswith("bias")}
    assert all(group["weight_decay"] == 0.0 for group in split if biases & set(group["param_names"]))
    assert (family == "GptOss") == ("model.layers.0.mlp.experts.gate_up_proj_bias" in biases)


class GroupedExperts(nn.Module):
    """Experts as torchtitan keeps them: three stacks, no sizes."""

    def __init__(self, transposed: bool, bias: bool = False) -> None:
        super().__init__()
        for name, rows, columns in (("w1", 12, 8), ("w2", 8, 12), ("w3", 12, 8)):
            shape = (columns, rows) if transposed else (rows, columns)
            self.register_parameter(name, nn.Parameter(torch.zeros(3, *shape)))
            if bias:
                self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(3, rows)))


@pytest.mark.parametrize("transposed", [False, True])
def test_experts_of_unknown_sizes(transposed: bool) -> None:
    def told(model: nn.Module, **said: Any) -> set[bool]:
        return {
            group.get("transposed", False) for group in split_parameters(model, **said) if group["kind"] == "matrix"
        }

    beside_router = nn.ModuleDict({"router": nn.Linear(8, 3), "experts": GroupedExperts(transposed)})
    assert told(beside_router, overrides={"router": "other"}) == {transposed}
    biased = GroupedExperts(transposed, bias=True)
    assert told(biased) == {transposed}
    assert with_kind(split_parameters(biased), "bias") == {"w1_bias", "w2_bias", "w3_bias"}
    unknown = GroupedExperts(transposed)
    assert "it is assumed; if not, say transposed=" in split_parameters(unknown).rows[0].reason
    assert told(unknown) == {False}
    assert told(unknown, transposed="w?") == told(unknown, transposed=[unknown]) == {True}
    assert told(biased, transposed={biased: not transposed}) == {not transposed}


def test_experts_one_below_the_other() -> None:
    config = transformers.DbrxConfig().ffn_config
    config.hidden_size, config.ffn_hidden_size, config.moe_num_experts = 8, 12, 4
    experts = transformers.models.dbrx.modeling_dbrx.DbrxExpertGLU(config)
    (group,) = split_parameters(experts)
    assert (group["param_names"], group["blocks"]) == (["w1", "v1", "w2"], (12,) * 4)


def test_transposed_that_can_not_be() -> None:
    with pytest.raises(ValueError, match=r"transposed names 'norm', which matches no matrix"):
        split_parameters(nn.ModuleDict({"norm": nn.LayerNorm(3), "a": nn.Linear(3, 3)}), transposed="norm")
    with pytest.raises(ValueError, match="transposed says True or False for each name, got 1 for '0'"):
        split_parameters(mlp(), transposed={"0": 1})


# --- weight decay that a model forbids


def test_marks_of_no_weight_decay() -> None:
    class Vision(VisionTransformer):
        def no_weight_decay(self) -> set[str]:
            return {"pos_embed", "head.weight"}

        def no_weight_decay_keywords(self) -> set[str]:
            return {"qkv"}

    model = nn.ModuleDict({"vision": Vision(), "table": nn.Linear(3, 4)})
    model["table"].weight._no_weight_decay = True  # type: ignore[union-attr]
    for wrapped in (model, nn.DataParallel(model)):
        split = split_parameters(wrapped, head=())
        marked = {row.name.removeprefix("module.") for row in split.rows if "marked" in row.reason}
        qkv = {f"vision.blocks.{block}.qkv.weight" for block in (0, 1)}
        assert marked == qkv | {"vision.pos_embed", "vision.head.weight", "table.weight"}
        undecayed = {name for group in split if group.get("weight_decay") == 0.0 for name in group["param_names"]}
        assert {name.removeprefix("module.") for name in undecayed} >= marked


def test_the_state_matrix_of_mamba_does_not_decay() -> None:
    config = transformers.MambaConfig(vocab_size=40, hidden_size=16, state_size=4, num_hidden_layers=1)
    split = split_parameters(transformers.MambaForCausalLM(config))
    group = group_of(split, "backbone.layers.0.mixer.A_log")
    assert (group["role"], group["weight_decay"]) == ("other", 0.0)
    assert group_of(split, "backbone.layers.0.mixer.x_proj.weight")["role"] == "hidden"


# --- roles for an optimizer that exists

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.01),
    "SGD": lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9),
    "Adafactor": lambda params: torch.optim.Adafactor(params, lr=0.01),
    "our Lion": lambda params: Lion(params, lr=0.01),
    "pytorch_optimizer": lambda params: pytorch_optimizer.SOAP(params, lr=0.01),
    "two in one": lambda params: pytorch_optimizer.Lookahead(torch.optim.AdamW(params, lr=0.01)),
    "bitsandbytes": lambda params: bitsandbytes.optim.AdamW(params, lr=0.01),
}


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_with_roles_goes_on_as_without(name: str) -> None:
    model, other = (LlamaForCausalLM(llama_config()) for _ in range(2))
    other.load_state_dict(model.state_dict())
    optimizer, plain = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](other.parameters())
    for step in range(4):
        if step == 2:
            assert assign_roles(optimizer, model)
        learn(model, optimizer, step)
        learn(other, plain, step)
    assert all(a.equal(b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert [group["role"] for group in optimizer.param_groups] == list(ROLES)
    for role, group in zip(ROLES, optimizer.param_groups, strict=True):
        wanted = {p for g in split_parameters(model) if g["role"] == role for p in g["params"]}
        assert set(group["params"]) == wanted
    # What was saved after the split loads into groups that were split alike.
    follower = copy.deepcopy(model)
    fresh = OPTIMIZERS[name](follower.parameters())
    assign_roles(fresh, follower)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for trained, seed in ((model, 9), (follower, 9)):
        learn(trained, optimizer if trained is model else fresh, seed)
    assert all(a.equal(b) for a, b in zip(model.parameters(), follower.parameters(), strict=True))


def test_state_from_before_the_split_goes_to_its_parameters() -> None:
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.01)
    learn(model, optimizer, 0)
    saved = optimizer.state_dict()
    fresh = torch.optim.AdamW(model.named_parameters(), lr=0.5)
    assign_roles(fresh, model)
    fresh.load_state_dict(saved)
    for p in model.parameters():
        assert fresh.state[p]["exp_avg"].equal(optimizer.state[p]["exp_avg"])
    assert [group["param_names"] for group in fresh.param_groups] == [
        ["1.weight"],
        ["0.weight"],
        ["2.weight"],
        ["1.bias", "2.bias"],
    ]
    assert {group["lr"] for group in fresh.param_groups} == {0.01}
    with pytest.raises(ValueError, match="different number of parameter groups"):
        fresh.load_state_dict({**saved, "param_groups": [saved["param_groups"][0]] * 2})


def test_groups_keep_their_options_and_their_order() -> None:
    model = LlamaForCausalLM(llama_config())
    halves = [
        {"params": list(model.model.layers.parameters()), "lr": 0.5, "mine": "a"},
        {
            "params": [model.lm_head.weight, model.model.embed_tokens.weight, model.model.norm.weight],
            "weight_decay": 0.3,
        },
    ]
    optimizer = torch.optim.AdamW(halves, lr=0.1)
    first = optimizer.param_groups[0]
    assign_roles(optimizer, model)
    assert optimizer.param_groups[0] is first
    assert [(g["role"], g["lr"], g.get("mine"), g["weight_decay"]) for g in optimizer.param_groups] == [
        ("hidden", 0.5, "a", 0.01),
        ("other", 0.5, "a", 0.01),
        ("embedding", 0.1, None, 0.3),
        ("head", 0.1, None, 0.3),
        ("other", 0.1, None, 0.3),
    ]
    groups = list(optimizer.param_groups)
    assert assign_roles(optimizer, model)
    assert all(a is b for a, b in zip(optimizer.param_groups, groups, strict=True))
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "role": "other"})
    assert assign_roles(optimizer)


def test_rates_that_are_tensors_are_not_shared() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.1))
    assign_roles(optimizer, model)
    optimizer.param_groups[0]["lr"].fill_(9.0)
    assert [float(group["lr"]) for group in optimizer.param_groups] == pytest.approx([9.0, 0.1, 0.1])


def test_matrices_say_their_layout_where_the_step_does_not_depend_on_it() -> None:
    model = nn.Sequential(nn.MultiheadAttention(6, 2), GroupedExperts(True, bias=True), nn.Linear(6, 3))
    optimizer = torch.optim.AdamW(model.parameters())
    assign_roles(optimizer, model)
    layouts = {
        (group["role"], group.get("kind"), group.get("blocks"), group.get("transposed"))
        for group in optimizer.param_groups
    }
    assert layouts == {
        ("hidden", "matrix", (6, 6, 6), None),
        ("hidden", "matrix", None, None),
        ("hidden", "matrix", None, True),
        ("head", "head", None, None),
        ("other", None, None, None),
    }
    ours = Signum(model.parameters())
    assign_roles(ours, model)
    assert [(group["role"], "kind" in group) for group in ours.param_groups] == [
        ("hidden", False),
        ("head", False),
        ("other", False),
    ]


def test_arguments_of_the_split_and_groups_that_have_a_role() -> None:
    model = mlp()
    groups: list[dict[str, Any]] = [
        {"params": [model[0].weight], "role": "head"},
        {"params": list(model.parameters())[1:]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    assign_roles(optimizer, model, head="2")
    assert [(group["role"], len(group["params"])) for group in optimizer.param_groups] == [
        ("head", 1),
        ("hidden", 1),
        ("head", 1),
        ("other", 3),
    ]
    optimizer.param_groups[0]["role"] = "matrix"
    with pytest.raises(ValueError, match="role must be one of hidden, embedding, head, other, got 'matrix'"):
        assign_roles(optimizer, model)


def test_groups_of_a_state_dict_that_is_older_than_roles() -> None:
    optimizer = Muon(split_parameters(LlamaForCausalLM(llama_config())))
    roles = [group.pop("role") for group in optimizer.param_groups]
    assert [role_of(group) for group in optimizer.param_groups] == roles
    assert assign_roles(optimizer)
    assert [group["role"] for group in optimizer.param_groups] == roles
    assert role_of({"params": []}) is None


def test_frozen_parameters_have_a_role_too() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assign_roles(optimizer, model)
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 1, 3]


def test_parameters_that_the_model_does_not_have() -> None:
    model, temperature = mlp(), nn.Parameter(torch.zeros(2, 3))
    optimizer = torch.optim.SGD([*model.parameters(), temperature], lr=0.1)
    with pytest.warns(UserWarning, match=r"1 parameters that the model does not have \(shapes 2x3\)"):
        assert assign_roles(optimizer, model)
    assert any(p is temperature for p in optimizer.param_groups[-1]["params"])
    with pytest.raises(ValueError, match="none of the optimizer's 6 parameters is the model's"):
        assign_roles(torch.optim.SGD(mlp().parameters(), lr=0.1), model)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_optimizers_that_can_not_be_split(two_ranks: None) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns

    model = mlp()
    shared_out = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW)
    with pytest.raises(ValueError, match="give it those of split_parameters"):
        assign_roles(shared_out, model)
    with pytest.raises(ValueError, match="the groups of LBFGS can't be split"):
        assign_roles(torch.optim.LBFGS(model.parameters()), model)
    with pytest.raises(TypeError, match="an optimizer with param_groups is needed, got Sequential"):
        assign_roles(model, model)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the model must be a torch"):
        assign_roles(torch.optim.SGD(model.parameters(), lr=0.1), list(model.parameters()))  # type: ignore[arg-type]


def test_optimizers_inside_of_wrappers() -> None:
    model = mlp()
    wrapped = Accelerator(cpu=True).prepare(torch.optim.AdamW(model.parameters(), lr=0.1))
    assert assign_roles(wrapped, model)
    assert [group["role"] for group in wrapped.param_groups] == ["hidden", "head", "other"]
    assert wrapped.optimizer.param_groups is wrapped.param_groups


@pytest.mark.parametrize("name", ["llama", "llama tied", "bert", "mixtral", "vit", "gpt2"])
def test_names_say_what_the_modules_say(name: str) -> None:
    model = MODELS[name]()
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    guessed = roles_from_names(optimizer)
    assert guessed is not None
    by_module = {parameter: group["role"] for group in split_parameters(model) for parameter in group["params"]}
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    assert {names[p]: role for p, role in guessed.items()} == {names[p]: role for p, role in by_module.items()}
    assert assign_roles(optimizer)
    assert {p: group["role"] for group in optimizer.param_groups for p in group["params"]} == by_module


@pytest.mark.parametrize(
    "params", [lambda: mlp().named_parameters(), lambda: mlp().parameters(), lambda: Block(4).named_parameters()]
)
def test_names_that_do_not_say_enough(params: Callable[[], Any]) -> None:
    optimizer = torch.optim.SGD(params(), lr=0.1)
    assert roles_from_names(optimizer) is None
    assert not assign_roles(optimizer)
    assert len(optimizer.param_groups) == 1
    assert "role" not in optimizer.param_groups[0]


SHAPED: dict[str, Callable[[], nn.Module]] = {
    name: MODELS[name] for name in ("llama", "llama tied", "llama without head", "mixtral")
} | {
    "positions": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=24, n_embd=16, n_layer=2, n_head=2)),
    "classifier": lambda: BertForSequenceClassification(
        BertConfig(
            vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
            max_position_embeddings=20, num_labels=3,
        )
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPED)
def test_shapes_say_what_the_modules_say(name: str) -> None:
    model = SHAPED[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    by_module = {parameter: group["role"] for group in split_parameters(model) for parameter in group["params"]}
    with pytest.warns(UserWarning, match=r"no roles; by order and shape 40x16.* are taken for embeddings"):
        assert guess_roles(optimizer)
    assert {p: group["role"] for group in optimizer.param_groups for p in group["params"]} == by_module


@pytest.mark.parametrize("name", MODELS)
def test_shapes_take_no_hidden_matrix_for_another(name: str) -> None:
    model = MODELS[name]()
    guessed = roles_from_shapes(torch.optim.SGD(model.parameters(), lr=0.1)) or {}
    by_module = {parameter: group["role"] for group in split_parameters(model) for parameter in group["params"]}
    assert not [tuple(p.shape) for p, role in guessed.items() if by_module[p] == "hidden" != role]


@pytest.mark.parametrize(
    "model",
    [
        VisionTransformer,
        convnet,
        mlp,
        lambda: nn.Sequential(nn.Linear(30, 12), nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 30)),
        lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9)),
    ],
)
def test_shapes_that_do_not_say_enough(model: Callable[[], nn.Module]) -> None:
    optimizer = torch.optim.SGD(model().parameters(), lr=0.1)
    assert roles_from_shapes(optimizer) is None
    assert not guess_roles(optimizer)
    assert len(optimizer.param_groups) == 1


def test_the_table_of_roles() -> None:
    model = LlamaForCausalLM(llama_config())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p is not model.model.norm.weight], lr=0.1)
    assert roles_table(optimizer).splitlines() == [
        "role     parameters  entries  names",
        "no role  20          5,696    40x16, 16x16, 24x16 and 2 more",
    ]
    assign_roles(optimizer, model)
    assert roles_table(optimizer, model).splitlines() == [
        "role                  parameters  entries  names",
        "hidden                14          4,352    model.layers.*.self_attn.q_proj.weight, "
        "model.layers.*.self_attn.k_proj.weight, model.layers.*.self_attn.v_proj.weight and 4 more",
        "embedding             1           640      model.embed_tokens.weight",
        "head                  1           640      lm_head.weight",
        "other                 4           64       model.layers.*.input_layernorm.weight, "
        "model.layers.*.post_attention_layernorm.weight",
        "not in the optimizer  1           16       model.norm.weight",
    ]


LAYERS: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(3, 4),
    lambda: nn.Linear(3, 4, bias=False),
    lambda: nn.Embedding(5, 3),
    lambda: nn.Conv1d(2, 2, 3),
    lambda: nn.BatchNorm1d(3),
    lambda: nn.MultiheadAttention(4, 2),
    lambda: nn.Bilinear(2, 3, 4),
    lambda: nn.GRU(2, 3),
    lambda: nn.ReLU(),
    lambda: Block(4),
]


@st.composite
def layers(draw: st.DrawFn) -> nn.Module:
    leaf = st.sampled_from(LAYERS)
    parts = [build() for build in draw(st.lists(leaf, min_size=1, max_size=4))]
    inner = [build() for build in draw(st.lists(leaf, min_size=1, max_size=3))]
    return nn.Sequential(nn.Sequential(*inner) if draw(st.booleans()) else nn.ModuleList(inner), *parts)


@settings(max_examples=60, deadline=None)
@given(model=layers(), data=st.data())
def test_any_model_is_split_into_a_partition_of_its_trainable_parameters(model: nn.Module, data: st.DataObject) -> None:
    parameters = list(model.parameters())
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if len(linears) > 1 and linears[0].weight.shape == linears[-1].weight.shape and data.draw(st.booleans()):
        linears[-1].weight = linears[0].weight
    for parameter in parameters:
        parameter.requires_grad_(data.draw(st.booleans()))
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    if not trainable:
        with pytest.raises(ValueError, match=r"no parameters|frozen"):
            split_parameters(model)
        return
    split = split_parameters(model)
    got = [id(parameter) for group in split for parameter in group["params"]]
    assert len(got) == len(trainable)
    assert set(got) == trainable
    for group in split:
        least = {"matrix": 2, "embedding": 2, "head": 2, "conv": 3}.get(group["kind"], 0)
        assert all(parameter.ndim >= least for parameter in group["params"])
        if "blocks" in group:
            assert all(parameter.shape[0] == sum(group["blocks"]) for parameter in group["params"])
