"""The pieces that optimizers share, where a whole optimizer would hide them."""

from typing import Any

import pytest
import torch

from warmgap.torch.optimizers._base import (
    buckets,
    chunks,
    descend_,
    orthogonal_directions,
    rate,
    shrink_,
    unit_directions,
)


def test_a_rate_on_the_device_does_what_a_float_does() -> None:
    lr, tensor_lr = 0.25, torch.tensor(0.25)
    for dtype in (torch.float32, torch.bfloat16):
        x, d = torch.arange(6.0).reshape(2, 3).to(dtype), torch.ones(2, 3, dtype=dtype)
        by_float, by_tensor = [x.clone()], [x.clone()]
        for params, value in ((by_float, lr), (by_tensor, tensor_lr)):
            shrink_(params, value, 0.5)
            descend_(params, [d.clone()], value)
        assert by_tensor[0].dtype == dtype
        torch.testing.assert_close(by_tensor, by_float)
        torch.testing.assert_close(by_float[0], (x * 0.875 - 0.25).to(dtype))


def test_a_rate_is_read_on_the_cpu_only() -> None:
    assert rate({"lr": torch.tensor([0.5])}) == 0.5
    assert isinstance(rate({"lr": torch.tensor([0.5])}), float)
    on_device = rate({"lr": torch.ones(1, device="meta")})
    assert isinstance(on_device, torch.Tensor)
    assert on_device.ndim == 0


def test_buckets_gather_by_device_dtype_and_shape_off_the_cpu() -> None:
    def make(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
        p = torch.zeros(shape, dtype=dtype, device=device, requires_grad=True)
        p.grad = torch.zeros_like(p)
        return p

    a, b = make((2, 3), torch.float32, "meta"), make((2, 3), torch.float32, "meta")
    c, d = make((3, 3), torch.float32, "meta"), make((2, 3), torch.bfloat16, "meta")
    e, f = make((2, 3), torch.float32, "cpu"), make((2, 3), torch.float32, "cpu")
    params = [a, e, c, d, b, f]

    def identities(by_shape: bool) -> list[list[int]]:
        return [[id(p) for p in bucket] for bucket in buckets(params, by_shape=by_shape)]

    assert identities(True) == [[id(p) for p in bucket] for bucket in ([a, b], [e], [c], [d], [f])]
    assert identities(False) == [[id(p) for p in bucket] for bucket in ([a, c, b], [e], [d], [f])]
    a.grad = None
    assert identities(False) == [[id(p) for p in bucket] for bucket in ([e], [c, b], [d], [f])]


def test_chunks_cover_a_large_cpu_tensor_and_pass_on_anything_else() -> None:
    large, state = torch.zeros(700, 1000), torch.zeros(700, 1000)
    pieces = list(chunks([large], [state]))
    assert len(pieces) == 3
    for (x,), (y,) in pieces:
        x += 1
        y += 2
    assert large.eq(1).all()
    assert state.eq(2).all()
    for untouched in ([torch.zeros(3)], [large.T], [large, large], [large.to("meta")]):
        ((members,),) = chunks(untouched)
        assert members is untouched


def test_large_matrices_are_orthogonalised_in_several_batches() -> None:
    params = [torch.zeros(2**13, 2**13, device="meta", requires_grad=True) for _ in range(5)]
    for p in params:
        p.grad = torch.zeros_like(p)
    assert [len(bucket) for bucket in buckets(params, by_shape=True)] == [2, 2, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_unit_directions_have_length_one_and_zero_stays_zero(dtype: torch.dtype) -> None:
    long, zero = unit_directions([torch.full((10, 30), 40.0, dtype=dtype), torch.zeros(3, dtype=dtype)])
    assert long.dtype == zero.dtype == dtype
    assert long.double().norm().item() == pytest.approx(1.0, rel=1e-2)
    assert not zero.any()


@pytest.mark.parametrize(
    "group", [{}, {"kind": "matrix", "blocks": (2, 4)}, {"kind": "matrix", "blocks": (2, 4), "transposed": True}]
)
def test_matrices_orthogonalised_in_one_batch_are_as_one_by_one(group: dict[str, Any]) -> None:
    shape = (5, 6) if group.get("transposed") else (6, 5)
    estimates = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    params = [torch.zeros(shape) for _ in estimates]
    settings = {"exact": False, "ns_steps": 5, **group}
    batched = list(orthogonal_directions(params, estimates, settings, {}))
    assert len(batched) == len(group.get("blocks", (6,)))
    for index in range(3):
        alone = list(orthogonal_directions([params[index]], [estimates[index]], settings, {}))
        for (targets, sources, directions, _), (target, source, direction, _) in zip(batched, alone, strict=True):
            assert targets[index].data_ptr() == target[0].data_ptr()
            torch.testing.assert_close(sources[index], source[0])
            torch.testing.assert_close(directions[index], direction[0], atol=2e-2, rtol=0)
