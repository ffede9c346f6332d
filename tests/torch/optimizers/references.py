"""Each optimizer as its paper writes it, slow and obvious, on one list of tensors; double precision is welcome.

A reference is a generator: send it the list of gradients, it steps the parameters in place.
"""

import math
from collections.abc import Generator

import torch
from torch import Tensor

Steps = Generator[None, list[Tensor], None]


def polar_factor(g: Tensor) -> Tensor:
    """U V^T of the reduced SVD."""
    u, _, vh = torch.linalg.svd(g, full_matrices=False)
    factor: Tensor = u @ vh
    return factor


def muon(xs: list[Tensor], *, lr: float, momentum: float, nesterov: bool, weight_decay: float, scale: str) -> Steps:
    """Jordan et al. (2024), the momentum a sum; scales of arXiv 2502.16982 ("rms") and of Jordan et al. "
    "("spectral")."""
    bs = [torch.zeros_like(x) for x in xs]
    while True:
        gs = yield
        for x, b, g in zip(xs, bs, gs, strict=True):
            b.copy_(momentum * b + g)
            o = polar_factor(g + momentum * b if nesterov else b)
            rows, columns = x.shape
            factor = {
                "rms": 0.2 * math.sqrt(max(rows, columns)),
                "spectral": math.sqrt(max(1, rows / columns)),
                "none": 1,
            }
            x.copy_(x - lr * weight_decay * x - lr * factor[scale] * o)


def adamw(xs: list[Tensor], *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> Steps:
    """Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, the schedule left out of the decay's rate."""
    ms, vs = [torch.zeros_like(x) for x in xs], [torch.zeros_like(x) for x in xs]
    t = 0
    while True:
        gs = yield
        t += 1
        for x, m, v, g in zip(xs, ms, vs, gs, strict=True):
            m.copy_(betas[0] * m + (1 - betas[0]) * g)
            v.copy_(betas[1] * v + (1 - betas[1]) * g * g)
            m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
            x.copy_(x - lr * weight_decay * x - lr * m_hat / (v_hat.sqrt() + eps))


def lion(xs: list[Tensor], *, lr: float, betas: tuple[float, float], weight_decay: float) -> Steps:
    """Chen et al., arXiv 2302.06675, algorithm 2."""
    ms = [torch.zeros_like(x) for x in xs]
    while True:
        gs = yield
        for x, m, g in zip(xs, ms, gs, strict=True):
            c = betas[0] * m + (1 - betas[0]) * g
            x.copy_(x - lr * (torch.sign(c) + weight_decay * x))
            m.copy_(betas[1] * m + (1 - betas[1]) * g)


def signum(xs: list[Tensor], *, lr: float, momentum: float, weight_decay: float) -> Steps:
    """Bernstein et al., arXiv 1802.04434, algorithm 2, with decoupled weight decay."""
    ms = [torch.zeros_like(x) for x in xs]
    while True:
        gs = yield
        for x, m, g in zip(xs, ms, gs, strict=True):
            m.copy_(momentum * m + (1 - momentum) * g)
            x.copy_(x - lr * weight_decay * x - lr * torch.sign(m))


def normalized_sgd(xs: list[Tensor], *, lr: float, momentum: float, weight_decay: float) -> Steps:
    """arXiv 2602.05813, appendix C: the Frobenius LMO of each tensor's momentum."""
    ms = [torch.zeros_like(x) for x in xs]
    while True:
        gs = yield
        for x, m, g in zip(xs, ms, gs, strict=True):
            m.copy_(momentum * m + g)
            x.copy_(x - lr * weight_decay * x - lr * m / m.norm())


def layer_lmo(rule: str, m: Tensor) -> Tensor:
    """The LMO of a layer's norm, arXiv 2502.07529, tables of norms; a weight is (outputs, inputs, *kernel)."""
    if rule == "spectral":
        outputs, inputs, *kernel = m.shape
        factor = polar_factor(m.reshape(outputs, -1)).reshape(m.shape)
        return -math.sqrt(outputs / inputs) / math.prod(kernel) * factor
    if rule == "sign":
        return -torch.sign(m) / m.shape[1]
    if rule == "row":
        lengths: Tensor = m.norm(dim=1, keepdim=True)
        return -m / lengths / math.sqrt(m.shape[1])
    return -m / m.square().mean().sqrt()


def scion(
    xs: list[Tensor], rules: list[str], *, lr: float, momentum: float, radii: list[float], constrained: bool
) -> Steps:
    """Pethick et al., arXiv 2502.07529, algorithms 1 (unconstrained) and 2, with alpha = 1 - momentum."""
    ds = [torch.zeros_like(x) for x in xs]
    alpha = 1 - momentum
    while True:
        gs = yield
        for x, d, g, rule, radius in zip(xs, ds, gs, rules, radii, strict=True):
            d.copy_((1 - alpha) * d + alpha * g)
            step = lr * radius * layer_lmo(rule, d)
            x.copy_((1 - lr) * x + step if constrained else x + step)


def gluon(
    xs: list[Tensor], rules: list[str], *, lr: float, momentum: float, L0: float, L1: float, weight_decay: float
) -> Steps:
    """Riabinin et al., arXiv 2505.13416, algorithm 1 with theorem 1's radii, the dual norm by <m, -lmo(m)>."""
    ms: list[Tensor] = []
    while True:
        gs = yield
        ms = ms or [g.clone() for g in gs]
        for x, m, g, rule in zip(xs, ms, gs, rules, strict=True):
            m.copy_(momentum * m + (1 - momentum) * g)
            q = layer_lmo(rule, m)
            dual = -(m * q).sum()
            x.copy_(x - lr * weight_decay * x + lr * dual / (L0 + L1 * dual) * q)
