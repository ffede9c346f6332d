"""Parameters are sorted by the module that owns them, each exactly once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
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
from warmgap.torch.split import KINDS, ParameterSplit, split_parameters


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
