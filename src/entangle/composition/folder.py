"""The folder that a recipe's models lie in: whose it is, what is written down of it, and one run at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from entangle.composition.measuring.pairs import METRICS, read_metrics
from entangle.composition.plan import Plan
from entangle.composition.recipe.recipe import Recipe
from entangle.errors import EntangleError
from entangle.storage.files import on_disk, tidy
from entangle.storage.owner import owned
from entangle.storage.sealed import decoding, read_object, unseal, write_sealed

RECIPE = "recipe.json"
PATIENCE = 2.0  # seconds to wait for another run in the same folder, which usually goes on for much longer


@contextmanager
def owned_by(recipe: Recipe, out: Path) -> Iterator[None]:
    """Be the only run that writes into `out`, and clear what a killed one left half done."""
    with on_disk(out):
        out.mkdir(parents=True, exist_ok=True)
        with owned(out, patience=PATIENCE):
            tidy(out)
            for cell in recipe.cells:
                if (out / cell.name).is_symlink():
                    raise EntangleError(
                        f"{out / cell.name} is a link, which is not followed out of {out}: move it away"
                    )
                if (out / cell.name).is_dir():
                    tidy(out / cell.name)
            check_folder(recipe, out)
            yield


def write_recipe(recipe: Recipe, out: Path) -> None:
    """Write down whose models these are."""
    write_sealed(out / RECIPE, recipe.to_dict())


def check_folder(recipe: Recipe, out: str | Path) -> None:
    """Refuse a folder whose models came of another recipe, or that is none.

    Raises:
        EntangleError: One line that says whose it is.

    Example:
        >>> _ = Path("taken").write_text("")
        >>> try:
        ...     en.composition.check_folder(en.composition.demo_recipe(), "taken")
        ... except en.EntangleError as error:
        ...     print(error)
        models are written to a folder, but taken is a file: choose another
    """
    out = Path(out)
    path = out / RECIPE
    if os.path.lexists(out) and not out.is_dir():
        raise EntangleError(f"models are written to a folder, but {out} is a file: choose another")
    if not os.path.lexists(path):
        return
    saved = read_object(path, "a recipe", remedy="choose another folder")
    fields = unseal(saved, path, "a recipe", remedy="choose another folder")
    with decoding(path, "a recipe", remedy="choose another folder"):
        before = Recipe.from_dict(fields)
    if fields == saved and fields != before.to_dict():
        raise EntangleError(f"{path} is not one that compose wrote, and would be lost: choose another folder for --out")
    if before.of_each_model() != recipe.of_each_model():
        raise EntangleError(f"{out} holds the models of another recipe: give another folder, or delete it")
    trained = {
        cell.name: cell.variant for cell in before.cells if cell.variant and (out / cell.name / METRICS).exists()
    }
    for cell in recipe.cells:
        was = trained.get(cell.name)
        if was and cell.variant and was.of_each_model() != cell.variant.of_each_model():
            raise EntangleError(
                f"{out / cell.name} holds another variant of the name {was.name!r}: rename this one, or delete it"
            )


def check_texts(plan: Plan, out: Path) -> None:
    """Refuse finished models that were trained or judged on other texts than the recipe's files hold now."""
    for cell in plan.recipe.cells:
        if cell.posttraining or not (out / cell.name / METRICS).exists():
            continue  # posttraining has a key of its own
        before = read_metrics(out / cell.name).get("texts")
        if before not in (None, plan.texts_key(cell), plan.earlier_texts_key):  # the earliest versions did not write it
            raise EntangleError(
                f"{out / cell.name} came of other texts, or another tokenizer, than the recipe's files hold now: put "
                "them back, or give another folder for --out"
            )
