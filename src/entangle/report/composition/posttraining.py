"""What the page of a composition says of models that were trained on pairs."""

from __future__ import annotations

from entangle.composition.comparing.comparison import Comparison
from entangle.composition.comparing.displacement import displacement
from entangle.study.page import Drawing, Table
from entangle.study.wording import number, percent, spread

COLUMNS = {
    "chosen": "preferred, nats [95 %]",
    "rejected": "other, nats [95 %]",
    "margin": "margin, nats [95 %]",
    "fell": "preferred fell in [95 %]",
    "ches": "CHES before [95 %]",
}
CAPTION = (
    "Change of the log-likelihood of a whole text; margin: of the preferred less of the other. Where the preferred "
    "text itself becomes less likely, its likelihood was displaced (Razin et al. 2024), which pairs of high CHES are "
    "said to suffer most: foreseen is Spearman's correlation of the score with the change of the preferred text, and p "
    "the chance of one as negative if scores and pairs were matched at random. Intervals are over pairs, for this seed."
)


def posttraining(comparison: Comparison) -> tuple[list[Drawing], list[Table]]:
    """What training on pairs did to their likelihoods."""
    frame = displacement([model for models in comparison.posttrained.values() for model, _ in models])
    rows = [
        [
            row["name"],
            row["method"].upper(),
            percent(row["share"]),
            str(row["seed"]),
            f"{row['n']} {row['pairs']}",
            *(spread(row, name, 4 if name == "ches" else 2) for name in COLUMNS),
            number(row["foreseen"], 2),
            number(row["foreseen_p"], 4),
        ]
        for row in frame.to_dict("records")
    ]
    columns = ["", "method", "share", "seed", "pairs", *COLUMNS.values(), "foreseen", "p"]
    return [], [Table(columns, rows, CAPTION)] if rows else []
