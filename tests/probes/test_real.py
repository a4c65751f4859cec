"""On real activations: scikit-learn's minimum and its predictions."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForCausalLM, AutoTokenizer

from entangle.activations import collect
from entangle.probes import LogisticProbe, three_way


@pytest.mark.shared
@pytest.mark.slow
def test_scikit_learns_minimum_on_real_activations(shared):
    path = shared / "models" / "olmo2-4m-toxic10"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    with gzip.open(shared / "data" / "concept_sentiment.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines][::8]
    labels = np.array([row["label"] for row in rows])
    acts = collect(model, tokenizer, [row["text"] for row in rows], sites=["z", "resid_post"], progress=False)
    split = three_way(labels)
    fit, held_out = split.fit, torch.cat([split.select, split.report])
    y = labels[fit]
    same, rows_seen = 0, 0
    for x in (acts["z"].flatten(1, 2), acts["resid_post"]):
        ours = LogisticProbe().fit(x[fit], y)
        assert ours.converged_.all()
        for cell in range(0, x.shape[1], 3):
            rows_of = x[:, cell].double().numpy()
            theirs = LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=1000).fit(rows_of[fit], y)
            values = []
            for w, b in ((ours.coef_[cell], ours.intercept_[cell]), (theirs.coef_[0], theirs.intercept_[0])):
                scores = rows_of[fit] @ w + b
                values.append(0.5 * w @ w + (np.logaddexp(0, scores) - y * scores).sum())
            assert values[0] <= values[1] * (1 + 1e-6)
            same += (
                (rows_of[held_out] @ ours.coef_[cell] + ours.intercept_[cell] > 0) == theirs.predict(rows_of[held_out])
            ).sum()
            rows_seen += len(held_out)
    print(f"{same} of {rows_seen} held-out predictions are the same")
    assert same >= 0.999 * rows_seen
