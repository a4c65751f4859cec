"""Similarities agree with their definitions and with scikit-learn, and are invariant where they say so."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.spatial import procrustes as scipy_procrustes
from sklearn.cross_decomposition import CCA
from sklearn.metrics.pairwise import cosine_similarity, linear_kernel
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import KernelCenterer

from entangle.errors import EntangleError
from entangle.metrics import PairMoments, cca, cka, mmcs, mutual_knn, procrustes, random_entanglement_mean


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(n=80, d=6, e=4, seed=0):
    """Two representations that share some of their structure, away from the origin."""
    shared = normal(n, 3, seed=seed)
    return (
        shared @ normal(3, d, seed=1) + 0.5 * normal(n, d, seed=2) + 5,
        shared @ normal(3, e, seed=3) + 0.5 * normal(n, e, seed=4) - 2,
    )


def kernel_cka(x, y):
    """Kornblith et al.'s definition on n x n kernels, as scikit-learn makes and centres them."""
    k, m = (KernelCenterer().fit_transform(linear_kernel(side)) for side in (x, y))
    return float(cosine_similarity(k.reshape(1, -1), m.reshape(1, -1))[0, 0])


def unbiased_hsic(k, m):
    """Song et al. (2012), eq. 5, term by term."""
    n = len(k)
    k, m = k.copy(), m.copy()
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    return (
        np.trace(k @ m) + one @ k @ one * (one @ m @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ m @ one)
    ) / (n * (n - 3))


def test_cka_agrees_with_the_kernel_definitions():
    x, y = (t.numpy() for t in pair())
    assert float(cka(*pair())) == pytest.approx(kernel_cka(x, y), abs=1e-10)
    k, m = x @ x.T, y @ y.T
    expected = unbiased_hsic(k, m) / np.sqrt(unbiased_hsic(k, k) * unbiased_hsic(m, m))
    assert float(cka(*pair(), unbiased=True)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    "similarity", [cka, lambda x, y: cka(x, y, unbiased=True), procrustes, lambda x, y: cca(x, y).mean()]
)
def test_invariance_to_rotation_shift_and_scale(similarity):
    x, y = pair()
    rotation = torch.linalg.qr(normal(6, 6, seed=9)).Q
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    before = float(similarity(x, y))
    assert float(similarity(3 * x @ rotation + 100, y)) == pytest.approx(before, abs=1e-9)
    assert float(similarity(x[order], y[order])) == pytest.approx(before, abs=1e-9)
    assert float(similarity(y, x)) == pytest.approx(before, abs=1e-9)
    assert float(similarity(x, 2 * x @ rotation - 1)) == pytest.approx(1, abs=1e-9)
    assert float(similarity(x, y[order])) < before - 0.1


def test_only_cca_is_invariant_to_every_linear_map():
    x, y = pair()
    mixing = normal(6, 6, seed=9) + torch.diag(torch.tensor([30.0, 1, 1, 1, 1, 1]))
    assert torch.allclose(cca(x @ mixing, y), cca(x, y), atol=1e-8)
    assert abs(float(cka(x @ mixing, y) - cka(x, y))) > 0.01


def test_bias_of_cka_and_its_cure():
    found = [
        (float(cka(a, b)), float(cka(a, b, unbiased=True)))
        for i in range(20)
        for a, b in [(normal(30, 60, seed=i), normal(30, 60, seed=100 + i))]
    ]
    biased, unbiased = np.mean(found, axis=0)
    assert biased > 0.6
    assert abs(unbiased) < 0.05


def test_batches_equal_the_whole():
    x, y = pair(n=200)
    moments = PairMoments()
    for start in range(0, 200, 33):
        moments.update(x[start : start + 33].float(), y[start : start + 33].float())
    x, y = x.float(), y.float()
    assert float(moments.cka()) == pytest.approx(float(cka(x, y)), abs=1e-9)
    assert float(moments.cka(unbiased=True)) == pytest.approx(float(cka(x, y, unbiased=True)), abs=1e-9)
    assert float(moments.procrustes()) == pytest.approx(float(procrustes(x, y)), abs=1e-9)
    assert torch.allclose(moments.cca(), cca(x, y), atol=1e-8)


def test_a_far_origin_costs_no_precision():
    x, y = pair()
    assert float(cka(x + 1e6, y, unbiased=True)) == pytest.approx(float(cka(x, y, unbiased=True)), abs=1e-6)


def test_cca_agrees_with_sklearn():
    x, y = (t.numpy() for t in pair(n=300))
    u, v = CCA(n_components=4, max_iter=5000, tol=1e-12).fit_transform(x, y)
    expected = [np.corrcoef(u[:, i], v[:, i])[0, 1] for i in range(4)]
    assert cca(*pair(n=300)).tolist() == pytest.approx(expected, abs=1e-5)


def test_cca_keeps_what_it_is_asked_to():
    x, y = pair(n=300)
    assert len(cca(x, y)) == 4
    narrow = torch.cat([x, 1e-4 * normal(300, 2, seed=8)], 1)
    assert len(cca(narrow, narrow)) == 8
    assert len(cca(narrow, narrow, keep=0.99)) < 8
    rank_two = normal(300, 2) @ normal(2, 7, seed=5)
    assert len(cca(rank_two, x)) == 2


def test_procrustes_agrees_with_scipy():
    x, y = (t.numpy() for t in pair(d=5, e=5))
    disparity = scipy_procrustes(x, y)[2]
    assert float(procrustes(*pair(d=5, e=5))) ** 2 == pytest.approx(1 - disparity)


@pytest.mark.parametrize("k", [1, 5])
def test_mutual_knn_agrees_with_sklearn(k):
    x, y = pair()
    near = [NearestNeighbors(n_neighbors=k + 1, metric="cosine").fit(t).kneighbors(t)[1][:, 1:] for t in (x, y)]
    expected = np.mean([len(set(a) & set(b)) / k for a, b in zip(*near, strict=True)])
    assert float(mutual_knn(x, y, k)) == pytest.approx(expected)
    assert float(mutual_knn(x, y, k, block=7)) == pytest.approx(expected)


def test_mutual_knn_by_chance_and_at_its_best():
    x, y = normal(400, 5), normal(400, 5, seed=1)
    assert float(mutual_knn(x, y, 20)) == pytest.approx(20 / 399, abs=0.01)
    assert float(mutual_knn(x, 4 * x @ torch.linalg.qr(normal(5, 5)).Q, 20)) == 1


def test_mmcs_finds_the_permutation():
    a = normal(6, 8)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    assert mmcs(a, 3 * a[order]).tolist() == pytest.approx([1] * 6)
    assert mmcs(a, a[order], one_to_one=True).tolist() == pytest.approx([1] * 6)
    assert mmcs(a, a, block=2).tolist() == pytest.approx([1] * 6)


def test_one_to_one_is_the_best_assignment():
    a, b = normal(4, 3), normal(5, 3, seed=1)
    cosine = torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T
    best = max(float(cosine[range(4), list(p)].sum()) for p in itertools.permutations(range(5), 4))
    assert float(mmcs(a, b, one_to_one=True).sum()) == pytest.approx(best)
    assert float(mmcs(a, b).sum()) >= best
    twice = a[[0, 0, 1, 1]]
    assert mmcs(twice, a).tolist() == pytest.approx([1] * 4)
    assert float(mmcs(twice, a, one_to_one=True).mean()) < 0.9


def test_mmcs_by_chance():
    a, b = normal(300, 64), normal(500, 64, seed=1)
    both = torch.cat([b, -b])
    assert float(mmcs(a, both).mean()) == pytest.approx(random_entanglement_mean(501, 64), abs=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cka(normal(5, 3), normal(6, 3)), "same examples"),
        (lambda: cka(normal(5, 3), torch.ones(5, 3)), "does not vary"),
        (lambda: cka(normal(3, 2), normal(3, 2), unbiased=True), "4 examples"),
        (lambda: procrustes(normal(5, 3), torch.ones(5, 3)), "does not vary"),
        (lambda: cca(normal(5, 3), torch.ones(5, 3)), "does not vary"),
        (lambda: cca(normal(5, 3), normal(5, 3), keep=0), "keep"),
        (lambda: cka(normal(5, 3), normal(5, 3) * torch.nan), "NaN"),
        (lambda: PairMoments().update(normal(5, 3), normal(5, 3)).update(normal(5, 2), normal(5, 3)), "widths"),
        (lambda: PairMoments().cka(), "not 0"),
        (lambda: mutual_knn(normal(5, 3), normal(4, 3)), "5 and 4"),
        (lambda: mutual_knn(normal(5, 3), normal(5, 3), 5), "from 1 to 4"),
        (lambda: mmcs(normal(5, 3), normal(5, 4)), "3 and 4"),
        (lambda: mmcs(normal(5, 3), normal(4, 3), one_to_one=True), "as many"),
    ],
)
def test_bad_input_is_one_clear_line(call, message):
    with pytest.raises(EntangleError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
