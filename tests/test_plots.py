"""Figures show the arrays they are given; a drawing that left out its data would fail here."""

from __future__ import annotations

import numpy as np
import pytest

from entangle import plots


def test_a_heat_map_shows_every_value_and_outlines_the_marked_cells() -> None:
    values = np.arange(12.0).reshape(3, 4) / 12
    values[0, 0] = np.nan
    ax = plots.heatmap(values, mark=[(2, 1)])
    np.testing.assert_array_equal(np.asarray(ax.images[0].get_array().filled(np.nan)), values)
    assert len(ax.texts) == 11  # the blank cell has no number
    assert [patch.get_xy() for patch in ax.patches] == [(0.5, 1.5)]
    assert plots.heatmap(values[:, 1]).images[0].get_array().shape == (3, 1)


def test_a_distribution_integrates_to_one_beside_its_null() -> None:
    generator = np.random.default_rng(0)
    ax = plots.distribution(generator.normal(0.7, 0.05, (6, 6)), generator.normal(0.5, 0.02, (100, 6, 6)), baseline=0.8)
    areas = [sum(bar.get_height() * bar.get_width() for bar in container) for container in ax.containers]
    assert areas == pytest.approx([1, 1])
    assert any(line.get_xdata()[0] == 0.8 for line in ax.lines)


def test_a_matrix_is_white_at_zero_and_scaled_off_the_diagonal() -> None:
    values = np.array([[1.0, -0.2], [0.1, 1.0]])
    image = plots.matrix(values, ["a", "b"]).images[0]
    assert image.get_clim() == pytest.approx((-0.2, 0.2))
    with pytest.raises(ValueError, match="as many labels"):
        plots.matrix(values, ["a"])


def test_a_trade_off_is_drawn_in_the_order_of_its_strengths() -> None:
    curve = {
        "alpha": [8, 0, 4],
        "ce": [3.0, 1.0, 2.0],
        "ce_low": [2.9, 0.9, 1.9],
        "ce_high": [3.1, 1.1, 2.1],
        "toxicity": [0.1, 0.3, 0.2],
        "toxicity_low": [0.05, 0.25, 0.15],
        "toxicity_high": [0.15, 0.35, 0.25],
    }
    ax = plots.tradeoff({"iti": curve})
    line = ax.containers[0].lines[0]
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(line.get_ydata(), [0.3, 0.2, 0.1])
    assert [text.get_text() for text in ax.texts] == ["0", "4", "8"]


def test_by_layer_draws_a_line_a_name_over_the_null_band() -> None:
    series = {
        name: (np.array([0.6, 0.7]) + k, np.array([0.5, 0.6]), np.array([0.7, 0.8])) for k, name in enumerate("ab")
    }
    ax = plots.by_layer([0, 3], series, band=(0.45, 0.55), baseline=0.9)
    line, _, (bars,) = ax.containers[1].lines
    np.testing.assert_array_equal(line.get_ydata(), [1.6, 1.7])
    np.testing.assert_allclose([bar[:, 1] for bar in bars.get_segments()], [[0.5, 1.6], [0.6, 1.7]])
    alone = plots.by_layer([0, 3], {"a": series["a"]})
    np.testing.assert_array_equal(alone.lines[0].get_ydata(), [0.6, 0.7])


def test_a_forest_shows_every_interval_over_its_null_with_the_first_row_on_top() -> None:
    value, low, high = np.array([0.2, -0.1]), np.array([0.1, -0.3]), np.array([0.3, 0.0])
    series = {"one": (value, low, high), "two": (-value, -high, -low)}
    ax = plots.forest(["first", "second"], series, bands={"one": (low / 2, high / 2)})
    one, two = [c for c in ax.containers if hasattr(c, "has_xerr")]
    np.testing.assert_allclose(one.lines[0].get_xdata(), value)
    np.testing.assert_allclose(two.lines[0].get_xdata(), -value)
    (bars,) = one.lines[2]
    np.testing.assert_allclose([segment[:, 0] for segment in bars.get_segments()], np.stack([low, high], 1))
    np.testing.assert_allclose([(each.get_x(), each.get_width()) for each in ax.patches], [(0.05, 0.1), (-0.15, 0.15)])
    assert ax.yaxis_inverted()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["first", "second"]
