from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from warmgap.optax import SpectralCapState, roles_of, scale_by_warmup, spectral_cap
from warmgap.rules import default_rho


def params() -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 4)
    return {
        "embed": {"embedding": jax.random.normal(keys[0], (32, 16))},
        "block": {
            "MultiHeadAttention_0": {"kernel": 0.1 * jax.random.normal(keys[1], (16, 16))},
            "Dense_0": {"kernel": jnp.zeros((16, 24)), "bias": jnp.zeros(24)},
        },
        "lm_head": {"kernel": jax.random.normal(keys[3], (16, 32))},
    }


def norm(x: jax.Array) -> float:
    return float(np.linalg.norm(np.asarray(x), 2))


def test_only_hidden_matrices_are_held_and_by_one_factor() -> None:
    start = params()
    grads = jax.tree.map(jnp.ones_like, start)
    optimizer = optax.chain(optax.lion(0.1), spectral_cap(0.05, rank=1))
    plain = optax.lion(0.1)
    held, state = jax.jit(optimizer.update)(grads, optimizer.init(start), start)
    free, _ = plain.update(grads, plain.init(start), start)
    cap = state[1]
    assert isinstance(cap, SpectralCapState)
    for path in (("embed", "embedding"), ("lm_head", "kernel")):
        assert jnp.array_equal(held[path[0]][path[1]], free[path[0]][path[1]])
    block = held["block"]
    one, two = block["MultiHeadAttention_0"]["kernel"], block["Dense_0"]["kernel"]
    assert jnp.array_equal(block["Dense_0"]["bias"], free["block"]["Dense_0"]["bias"])
    ratios = [norm(one), norm(two) / (24 / 16) ** 0.5]
    assert sum(ratios) / 2 == pytest.approx(0.05, rel=0.1)
    assert float(jnp.abs(one).max()) == pytest.approx(float(jnp.abs(two).max()), rel=1e-2)
    assert 0.0 < float(cap.factor) < 0.2


def test_without_an_embedding_everything_shares_the_factor() -> None:
    start = {"Dense_0": {"kernel": jnp.ones((8, 16)), "bias": jnp.zeros(16)}, "head": {"kernel": jnp.ones((16, 4))}}
    updates = jax.tree.map(jnp.ones_like, start)
    cap = spectral_cap(0.05, rank=1)
    held, state = cap.update(updates, cap.init(start))
    assert float(state.factor) < 0.01
    assert all(jnp.allclose(x, state.factor) for x in jax.tree.leaves(held))


def test_a_convolution_is_measured_by_its_channels() -> None:
    updates = {"Conv_0": {"kernel": jnp.ones((3, 3, 4, 16))}}  # of rank one, norm 24
    cap = spectral_cap(0.05, rank=1)
    _, state = cap.update(updates, cap.init(updates))
    assert float(state.ratio) == pytest.approx(24 / (16 / 4) ** 0.5)


@pytest.mark.parametrize("rank", [1, 8])
def test_small_updates_pass_bit_for_bit_and_zero_ones_make_no_nan(rank: int) -> None:
    start = params()
    cap = spectral_cap(0.1, rank=rank)
    with jax.debug_nans(True):
        for size in (0.0, 1e-6):
            updates = jax.tree.map(lambda x, size=size: jnp.full_like(x, size), start)
            held, state = cap.update(updates, cap.init(start))
            assert all(map(jnp.array_equal, jax.tree.leaves(held), jax.tree.leaves(updates)))
            assert float(state.factor) == 1.0


@pytest.mark.parametrize(("size", "expected"), [(0.07, 0.5), (0.03, 0.03 / 0.0816)])
def test_what_sticks_out_is_cut_to_half_the_cap(size: float, expected: float) -> None:
    start = {"embed": jnp.ones((8, 4)), "kernel": jnp.ones((96, 64))}
    cap = spectral_cap(0.1)
    updates = {"embed": start["embed"], "kernel": size * start["kernel"] / (96 * 64) ** 0.5}  # of rank 1
    held, _ = cap.update(updates, cap.init(start))
    assert jnp.array_equal(held["embed"], updates["embed"])
    limit = 0.1 * (64 / 96) ** 0.5
    assert float(jnp.linalg.norm(held["kernel"], 2)) == pytest.approx(expected * limit, rel=2e-3)


def test_no_gradient_goes_through_what_is_measured() -> None:
    start = params()
    cap = spectral_cap(0.1)

    def moved(size: jax.Array) -> jax.Array:
        updates = jax.tree.map(lambda x: size * x, start)
        return jnp.asarray(sum(x.sum() for x in jax.tree.leaves(cap.update(updates, cap.init(start))[0])))

    assert float(jax.grad(moved)(0.0)) == pytest.approx(float(sum(x.sum() for x in jax.tree.leaves(start))), rel=1e-5)


def test_it_goes_under_vmap_and_beside_the_schedule() -> None:
    start = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), params())
    optimizer = optax.chain(optax.adamw(0.3), scale_by_warmup(50), spectral_cap(total_iters=50))
    states = jax.vmap(optimizer.init)(start)
    step = jax.vmap(lambda g, s, p: optimizer.update(g, s, p, value=jnp.float32(3.0)))
    _, states = jax.jit(step)(start, states, start)
    assert states[2].factor.shape == (2,)
    assert all(0.0 < float(factor) < 1.0 for factor in states[2].factor)


def test_roles_come_from_paths_labels_or_a_function() -> None:
    start = params()
    roles = roles_of(start)
    assert roles["block"]["MultiHeadAttention_0"]["kernel"] == "hidden"
    assert (roles["embed"]["embedding"], roles["lm_head"]["kernel"]) == ("embedding", "head")
    assert roles["block"]["Dense_0"]["bias"] == "other"
    for given in (roles, roles_of):
        assert spectral_cap(0.1, roles=given).init(start).factor == 1.0


def test_the_largest_singular_values_are_cut_and_the_rest_passes() -> None:
    key = jax.random.split(jax.random.key(1), 3)
    sides = jnp.linalg.qr(jax.random.normal(key[0], (48, 48)))[0], jnp.linalg.qr(jax.random.normal(key[1], (64, 64)))[0]
    values = jnp.concatenate([jnp.array([4.0, 2.0, 1.5]), jnp.full(45, 0.1)])
    kernel = (sides[0] * values) @ sides[1][:48]  # 48 inputs, 64 outputs
    updates: dict[str, Any] = {"embed": jnp.ones((4, 4)), "dense": {"kernel": kernel}}
    rho = 0.5
    cap = spectral_cap(rho)
    state, step = cap.init(updates), jax.jit(cap.update)
    for _ in range(8):
        held, state = step(updates, state)
    limit = rho * (64 / 48) ** 0.5
    expected = (sides[0] * jnp.minimum(values, limit)) @ sides[1][:48]
    assert float(state.factor) == 1.0
    np.testing.assert_allclose(held["dense"]["kernel"], expected, atol=2e-3)
    assert jnp.array_equal(held["embed"], updates["embed"])


def test_it_cuts_as_the_cap_of_torch_does() -> None:
    import torch

    from warmgap.torch.singular import leading

    kernel = jax.random.normal(jax.random.key(2), (40, 30)) @ jnp.diag(jnp.arange(1, 31) ** -1.0)
    cap = spectral_cap(1e-3)
    updates = {"embed": jnp.ones((4, 4)), "dense": {"kernel": kernel}}
    state, start = cap.init(updates), None
    for _ in range(20):
        _, state = cap.update(updates, state)
        found = leading(torch.from_numpy(np.array(kernel.T)).unsqueeze(0), 8, start)
        start = found.start
    assert float(state.ratio) == pytest.approx(float(found.values.min()) / (30 / 40) ** 0.5, rel=1e-2)


def test_updates_that_are_zero_leave_the_others_held() -> None:
    start = {"embed": jnp.ones((4, 4)), **{name: jax.random.normal(jax.random.key(1), (32, 32)) for name in "abc"}}
    frozen = start | {name: jnp.zeros((32, 32)) for name in "ab"}
    cap = spectral_cap(0.1)
    _, alone = cap.update({"embed": start["embed"], "c": start["c"]}, cap.init({"c": start["c"]}))
    with jax.debug_nans(True):
        held, state = cap.update(frozen, cap.init(start))
    assert float(state.factor) == pytest.approx(float(alone.factor), rel=1e-5)
    assert float(state.factor) < 0.1
    assert not bool(held["a"].any())


def test_a_step_whose_rows_are_orthogonal_to_those_of_the_last_is_held_too() -> None:
    signs = jnp.ones((2, 24)).at[1, 12:].set(-1.0)
    cap = spectral_cap(0.1)
    state = cap.init({"dense": jnp.ones((16, 24))})
    for index in range(4):  # outputs are columns
        held, state = cap.update({"dense": jnp.ones((16, 1)) * signs[index % 2]}, state)
        assert float(jnp.linalg.norm(held["dense"], 2)) <= 0.1001 * (24 / 16) ** 0.5


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="rank"):
        spectral_cap(0.1, rank=0)
    with pytest.raises(ValueError, match="rho"):
        spectral_cap(-1.0)
    with pytest.raises(ValueError, match="no hidden matrix"):
        spectral_cap(0.1).init({"bias": jnp.zeros(3)})


def test_rho_follows_the_length_of_the_run() -> None:
    assert default_rho(None) == default_rho(100) == default_rho(300) == 0.02
    assert default_rho(675) == pytest.approx(0.02 / 1.5)
    assert default_rho(10**6) == 0.01
