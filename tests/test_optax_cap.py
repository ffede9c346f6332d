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
    optimizer = optax.chain(optax.lion(0.1), spectral_cap(0.05))
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
    cap = spectral_cap(0.05)
    held, state = cap.update(updates, cap.init(start))
    assert float(state.factor) < 0.01
    assert all(jnp.allclose(x, state.factor) for x in jax.tree.leaves(held))


def test_a_convolution_is_measured_by_its_channels() -> None:
    updates = {"Conv_0": {"kernel": jnp.ones((3, 3, 4, 16))}}  # of rank one, norm 24
    cap = spectral_cap(0.05)
    _, state = cap.update(updates, cap.init(updates))
    assert float(state.ratio) == pytest.approx(24 / (16 / 4) ** 0.5)


def test_small_updates_pass_bit_for_bit_and_zero_ones_make_no_nan() -> None:
    start = params()
    cap = spectral_cap(0.1)
    with jax.debug_nans(True):
        for size in (0.0, 1e-6):
            updates = jax.tree.map(lambda x, size=size: jnp.full_like(x, size), start)
            held, state = cap.update(updates, cap.init(start))
            assert all(map(jnp.array_equal, jax.tree.leaves(held), jax.tree.leaves(updates)))
            assert float(state.factor) == 1.0


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


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="rho"):
        spectral_cap(-1.0)
    with pytest.raises(ValueError, match="no hidden matrix"):
        spectral_cap(0.1).init({"bias": jnp.zeros(3)})


def test_rho_follows_the_length_of_the_run() -> None:
    assert default_rho(None) == default_rho(100) == default_rho(1000) == 0.04
    assert default_rho(4000) == pytest.approx(0.02)
    assert default_rho(10**6) == 0.01
