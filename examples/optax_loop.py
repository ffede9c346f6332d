"""A jitted loop in JAX with optax, and a checkpoint that is checked when it is restored."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from warmgap.optax import check_restored, scale_by_warmup, spectral_cap

total_iters = 100
optimizer = optax.chain(optax.contrib.muon(2e-2), scale_by_warmup(total_iters), spectral_cap(total_iters=total_iters))

params = {"w": jax.random.normal(jax.random.key(0), (8, 4)), "b": jnp.zeros(4)}
x = jax.random.normal(jax.random.key(1), (64, 8))


def loss_of(params):
    return jnp.mean((jnp.tanh(x @ params["w"] + params["b"]) - jnp.sin(x[:, :4])) ** 2)


@jax.jit
def step(params, state):
    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, state = optimizer.update(grads, state, params, value=loss)
    return optax.apply_updates(params, updates), state, loss


state = optimizer.init(params)
for _ in range(total_iters):
    params, state, loss = step(params, state)
print(f"loss {loss:.3f}; factor {state[1].factor:.3g} of the schedule, {state[2].factor:.3g} of the cap")

np.savez("state.npz", *jax.tree.leaves(state))

fresh = optimizer.init(params)
with np.load("state.npz") as saved:
    state = jax.tree.unflatten(jax.tree.structure(fresh), [jnp.asarray(saved[name]) for name in saved.files])
check_restored(state, fresh)
