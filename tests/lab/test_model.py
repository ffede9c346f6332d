import pytest
import torch

from warmgap.lab.model import SIZES, build_image_model, build_model, size_of


def build(seed: int = 0, *, tied: bool = False) -> torch.nn.Module:
    model: torch.nn.Module = build_model("tiny", vocab_size=257, sequence_length=64, tied=tied, seed=seed)
    return model


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("tied", [False, True])
def test_the_table_counts_parameters_as_the_model_has_them(name: str, tied: bool) -> None:
    size = SIZES[name]
    with torch.device("meta"):
        model = build_model(name, vocab_size=size.vocab_size, sequence_length=8, tied=tied, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == size.parameters(tied=tied)


def test_the_sizes_of_the_papers() -> None:
    assert SIZES["124m"].parameters() == pytest.approx(124e6, rel=0.01)
    assert SIZES["210m"].parameters() == pytest.approx(210e6, rel=0.01)
    assert SIZES["tiny"].parameters() == pytest.approx(0.13e6, rel=0.02)


def test_a_size_by_layers_and_width() -> None:
    size = size_of("6x512")
    assert size is not None
    assert (size.layers, size.width, size.hidden, size.heads) == (6, 512, 1368, 8)
    assert [size_of(name) for name in ("huge", "6x", "0x64", "6x50")] == [None] * 4
    with torch.device("meta"):
        model = build_model("3x160", vocab_size=500, sequence_length=8, tied=True, seed=0)
    other = size_of("3x160")
    assert other is not None
    assert sum(parameter.numel() for parameter in model.parameters()) == other.parameters(500, tied=True)


def test_weights_are_a_function_of_the_seed() -> None:
    first, same, other = build(0), build(0), build(1)
    for a, b in zip(first.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    build(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_tied_embeddings_are_one_matrix() -> None:
    model = build(tied=True)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight  # type: ignore[operator]


@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_a_model_of_images_is_a_function_of_its_seed_and_leaves_the_random_state_alone(name: str) -> None:
    before = torch.get_rng_state()
    one, same, other = (build_image_model(name, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert one(torch.ones(3, 64)).shape == (3, 10)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(next(one.parameters()), next(other.parameters()))
