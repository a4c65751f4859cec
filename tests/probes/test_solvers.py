"""The batched solvers against scikit-learn and scipy at the same objective, and their own theorems."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import NearestCentroid

from entangle.probes.solving.closed_form import lda, mean_difference
from entangle.probes.solving.losses import LogisticLoss, MultinomialLoss, SquaredHingeLoss, SquaredLoss
from entangle.probes.solving.solvers import Design, minimise

N, D, CELLS = 600, 24, 3


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Cells far from the origin, with variances over five orders of magnitude; the first knows the labels well."""
    rng = np.random.default_rng(0)
    scales = np.geomspace(5, 0.02, D)
    rotations = [np.linalg.qr(rng.normal(size=(D, D)))[0] for _ in range(CELLS)]
    x = np.stack([rng.normal(size=(N, D)) * scales @ rotation + 20 for rotation in rotations])
    signal = (x[0] - x[0].mean(0)) @ rng.normal(size=D)
    labels = np.digitize(signal + rng.logistic(size=N), [-1.0, 1.0])
    return torch.from_numpy(x), torch.from_numpy(labels)


def objective(w, b, x, y, C, loss):
    scores = x @ w + b
    value = np.logaddexp(0, -y * scores) if loss == "logistic" else np.maximum(0, 1 - y * scores) ** 2
    return 0.5 * w @ w + C * value.sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("C", [1e-3, 1.0, 100.0])
def test_logistic_is_scikit_learns(data, dtype, C):
    x, labels = data[0], (data[1] > 0).long()
    solution = minimise(LogisticLoss(), Design.of(x.to(dtype)), labels[:, None], 2, C=C)
    assert bool(solution.converged.all())
    y = 2 * labels.numpy() - 1
    for cell in range(CELLS):
        theirs = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-10, max_iter=1000).fit(x[cell], labels)
        best = objective(theirs.coef_[0], theirs.intercept_[0], x[cell].numpy(), y, C, "logistic")
        w, b = solution.coef[cell, 0, 0].numpy(), solution.intercept[cell, 0, 0].item()
        ours = objective(w, b, x[cell].numpy(), y, C, "logistic")
        assert ours <= best * (1 + 1e-6)
        assert solution.objective[cell, 0].item() == pytest.approx(ours, rel=1e-5)
        assert np.mean((x[cell].numpy() @ w + b > 0) == (theirs.predict(x[cell]) == 1)) >= 0.999


def test_a_loose_tolerance_is_not_scikit_learns(data):
    """The negative control: the comparison above can fail."""
    x, labels = data[0], (data[1] > 0).long()
    solution = minimise(LogisticLoss(), Design.of(x), labels[:, None], 2, tol=1e-3)
    theirs = LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=1000).fit(x[0], labels)
    y = 2 * labels.numpy() - 1
    best = objective(theirs.coef_[0], theirs.intercept_[0], x[0].numpy(), y, 1.0, "logistic")
    assert solution.objective[0, 0].item() > best * (1 + 1e-5)


def test_multinomial_is_scikit_learns(data):
    x, labels = data
    solution = minimise(MultinomialLoss(), Design.of(x), labels[:, None], 3)
    for cell in range(CELLS):
        theirs = LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=1000).fit(x[cell], labels)
        ours = x[cell] @ solution.coef[cell, 0].T + solution.intercept[cell, 0]
        np.testing.assert_allclose(torch.softmax(ours, -1), theirs.predict_proba(x[cell]), atol=2e-4)


def test_squared_hinge_is_the_minimum_scipy_finds(data):
    x, labels = data[0], (data[1] > 0).long()
    solution = minimise(SquaredHingeLoss(), Design.of(x), labels[:, None], 2, C=0.1)
    y = 2 * labels.numpy() - 1
    for cell in range(CELLS):
        rows = x[cell].numpy()

        def function(v, rows=rows):
            slope = -2 * 0.1 * np.maximum(0, 1 - y * (rows @ v[:-1] + v[-1])) * y
            return objective(v[:-1], v[-1], rows, y, 0.1, "hinge"), np.append(v[:-1] + rows.T @ slope, slope.sum())

        theirs = scipy_minimize(
            function, np.zeros(D + 1), jac=True, method="L-BFGS-B", options={"maxiter": 50_000, "ftol": 1e-15}
        )
        assert solution.objective[cell, 0].item() <= theirs.fun * (1 + 1e-6)


def test_ridge_is_scikit_learns(data):
    x, labels = data
    solution = minimise(SquaredLoss(), Design.of(x), labels[:, None], 3, C=0.5 / 3.0, tol=1e-14)
    for cell in range(CELLS):
        theirs = RidgeClassifier(alpha=3.0).fit(x[cell], labels)
        np.testing.assert_allclose(solution.coef[cell, 0], theirs.coef_, atol=1e-6)
        np.testing.assert_allclose(solution.intercept[cell, 0], theirs.intercept_, atol=1e-5)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("shrinkage", [0, 0.3, 1.0])
def test_lda_is_scikit_learns(data, n_classes, shrinkage):
    x, labels = data[0], data[1].clamp(max=n_classes - 1)
    solution = lda(Design.of(x), labels[:, None], n_classes, shrinkage=shrinkage)
    for cell in range(CELLS):
        theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage or None).fit(x[cell], labels)
        ours = x[cell] @ solution.coef[cell, 0].T + solution.intercept[cell, 0]
        if n_classes == 2:
            np.testing.assert_allclose(ours[:, 0], theirs.decision_function(x[cell]), rtol=1e-6, atol=1e-6)
        else:
            np.testing.assert_allclose(torch.softmax(ours, -1), theirs.predict_proba(x[cell]), atol=1e-7)


def test_mean_difference_is_the_nearest_centroid(data):
    x, labels = data
    solution = mean_difference(Design.of(x), labels[:, None], 3)
    for cell in range(CELLS):
        ours = (x[cell] @ solution.coef[cell, 0].T + solution.intercept[cell, 0]).argmax(1)
        assert (ours.numpy() == NearestCentroid().fit(x[cell], labels).predict(x[cell])).all()


def test_side_by_side_is_one_by_one(data):
    """Labellings and cells in one batch are the problems alone."""
    x, rng = data[0], torch.Generator().manual_seed(0)
    labels = torch.stack([(data[1] > 0).long(), torch.randint(2, (N,), generator=rng)], 1)
    together = minimise(LogisticLoss(), Design.of(x), labels, 2)
    for cell in range(CELLS):
        for column in range(2):
            alone = minimise(LogisticLoss(), Design.of(x[cell : cell + 1]), labels[:, [column]], 2)
            torch.testing.assert_close(together.coef[cell, column], alone.coef[0, 0], atol=1e-3, rtol=1e-3)


def test_weights_count_as_repetitions(data):
    x, labels = data[0], (data[1] > 0).long()
    counts = torch.randint(0, 4, (N,), generator=torch.Generator().manual_seed(0))
    weighted = minimise(LogisticLoss(), Design.of(x, counts[:, None]), labels[:, None], 2, tol=1e-14)
    repeated = x.repeat_interleave(counts, 1)
    plain = minimise(LogisticLoss(), Design.of(repeated), labels.repeat_interleave(counts)[:, None], 2, tol=1e-14)
    torch.testing.assert_close(weighted.coef, plain.coef, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weighted.intercept, plain.intercept, atol=1e-4, rtol=1e-5)


def test_constant_and_duplicated_features(data):
    """A constant feature gets no weight; two copies share what one has, at half the penalty."""
    x, labels = data[0][..., :4].float(), (data[1] > 0).long()
    odd = torch.cat([x, x[..., :1], torch.full((CELLS, N, 1), 1e4)], -1)
    solution = minimise(LogisticLoss(), Design.of(odd), labels[:, None], 2)
    assert bool(solution.converged.all())
    assert solution.coef[..., -1].abs().max() == 0
    torch.testing.assert_close(solution.coef[..., 0], solution.coef[..., 4], atol=1e-4, rtol=1e-4)


def test_separable_data_converge_with_a_penalty():
    x = torch.randn(2, 200, 5, generator=torch.Generator().manual_seed(0))
    labels = (x[0, :, 0] > 0).long()
    solution = minimise(LogisticLoss(), Design.of(x), labels[:, None], 2, C=1e4)
    assert bool(solution.converged.all())
    assert ((x[0] @ solution.coef[0, 0, 0].float() + solution.intercept[0, 0, 0] > 0).long() == labels).all()


def test_too_few_steps_say_so(data):
    x, labels = data[0], (data[1] > 0).long()
    solution = minimise(LogisticLoss(), Design.of(x), labels[:, None], 2, max_iter=2)
    assert not bool(solution.converged.any())
    assert solution.n_iter == 2
