"""Fewer examples than features: the minimum lies in the space that they span, and is looked for there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import entangle as en
from entangle.probes import Design, LogisticLoss, minimise
from entangle.probes.solving.solvers import _inverse_factor

PATH = (1e-3, 1e-1, 10.0)


def data(n: int, d: int, cells: int = 2, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n + d)
    labels = torch.arange(n) % 2
    x = torch.randn(cells, n, d, generator=generator, dtype=torch.float64) + 3.0
    x += labels[:, None] * torch.randn(cells, 1, d, generator=generator, dtype=torch.float64) / 3
    return x.to(dtype), labels


@pytest.mark.parametrize(("n", "d"), [(20, 60), (59, 60), (60, 60), (61, 60)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_path_is_scikit_learns_on_both_sides_of_a_square(n: int, d: int, dtype: torch.dtype) -> None:
    x, labels = data(n, d, dtype=dtype)
    design, solution = Design.of(x), None
    for C in PATH:
        solution = minimise(LogisticLoss(), design, labels[:, None], 2, C=C, start=solution)
        assert bool(solution.converged.all())
        for cell in range(len(x)):
            peer = LogisticRegression(C=C, tol=1e-10, max_iter=10_000, solver="newton-cg")
            peer.fit(x[cell].double().numpy(), labels.numpy())
            # As near as the solver goes in either type, on both sides alike.
            near = {"rtol": 1e-3, "atol": 1e-3} if dtype is torch.float32 else {"rtol": 1e-5, "atol": 1e-6}
            np.testing.assert_allclose(solution.coef[cell, 0, 0], peer.coef_[0], **near)
            middle = x[cell].double().mean(0)  # far from it the coefficients' last digits move the intercept
            ours = solution.intercept[cell, 0, 0] + solution.coef[cell, 0, 0] @ middle
            np.testing.assert_allclose(ours, peer.intercept_[0] + peer.coef_[0] @ middle.numpy(), **near)


def test_no_coefficient_leaves_the_span_and_labellings_share_it() -> None:
    x, labels = data(15, 40)
    generator = torch.Generator().manual_seed(0)
    columns = torch.stack([labels, *(labels[torch.randperm(15, generator=generator)] for _ in range(3))], 1)
    together = minimise(LogisticLoss(), Design.of(x), columns, 2)
    centred = x - x.mean(1, keepdim=True)
    for cell in range(len(x)):
        coef = together.coef[cell, :, 0]
        inside = coef @ torch.linalg.pinv(centred[cell]) @ centred[cell]
        assert torch.allclose(inside, coef, atol=1e-9)
        other = torch.randn(coef.shape, generator=generator, dtype=torch.float64)  # a control: others do leave it
        assert (other @ torch.linalg.pinv(centred[cell]) @ centred[cell] - other).abs().max() > 0.1
    for number in range(columns.shape[1]):
        alone = minimise(LogisticLoss(), Design.of(x), columns[:, number : number + 1], 2)
        assert torch.allclose(alone.coef[:, 0], together.coef[:, number], atol=1e-6)


def test_features_that_are_constant_or_repeat_keep_it_whole() -> None:
    x, labels = data(12, 30, cells=1)
    x[..., 7] = 5.0
    x[..., 9] = x[..., 8]
    probe = en.LogisticProbe(C=1.0).fit(x[0].numpy(), labels.numpy())
    peer = LogisticRegression(C=1.0, tol=1e-10, max_iter=10_000, solver="newton-cg").fit(x[0].numpy(), labels.numpy())
    np.testing.assert_allclose(probe.coef_, peer.coef_, rtol=1e-4, atol=1e-6)
    assert probe.coef_[0, 7] == pytest.approx(0, abs=1e-9)
    assert probe.coef_[0, 8] == pytest.approx(probe.coef_[0, 9])


@pytest.mark.parametrize("scale", [1.0, 1e12])
def test_the_preconditioner_inverts_the_bound_however_large(scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3, 10, generator=generator, dtype=torch.float64)
    curvature = (rows.T @ rows * scale)[None]  # of rank 3
    inverse = _inverse_factor(curvature, 4.0, torch.float32).double()
    bound = torch.block_diag(curvature[0] + torch.eye(10), torch.tensor([[4.0]], dtype=torch.float64))
    assert bool(torch.isfinite(inverse).all())
    within = torch.linalg.eigvalsh(inverse[0] @ bound @ inverse[0].T)  # 1, were it exact
    assert float(within.max()) < 1.1
    assert float(within.min()) > 0
