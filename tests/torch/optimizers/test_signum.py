"""Signum against its paper."""

import pytest
from tests.torch.optimizers import references
from tests.torch.optimizers.problem import assert_close, copies, drive, drive_reference, parameters

from warmgap.torch.optimizers import Lion, Signum

SHAPES = [(6, 4), (5,), ()]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_it_follows_the_paper(momentum: float) -> None:
    params = parameters(SHAPES)
    xs = copies(params)
    expected = drive_reference(references.signum(xs, lr=0.05, momentum=momentum, weight_decay=0.3), xs)
    optimizer = Signum(params, lr=0.05, momentum=momentum, weight_decay=0.3)
    assert_close(drive(optimizer, params), expected, 1e-12)
    names = {name for state in optimizer.state.values() for name in state}
    assert names == ({"momentum_buffer"} if momentum else set())


def test_lion_with_equal_betas_is_signum() -> None:
    ours, theirs = parameters(SHAPES), parameters(SHAPES)
    expected = drive(Lion(theirs, lr=0.05, betas=(0.9, 0.9)), theirs)
    assert_close(drive(Signum(ours, lr=0.05, momentum=0.9), ours), expected, 1e-12)
