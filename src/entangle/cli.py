"""The `entangle` command: subcommands parse words and call the library; an `EntangleError` becomes one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from entangle.errors import EntangleError
from entangle.report import Settings

FAILED, REFUSED = 1, 2

app = typer.Typer(
    help="How entangled is a concept in a model, and what does it cost to steer it out?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

toy = typer.Typer(help="Toy models, where the truth is known.", no_args_is_help=True)
app.add_typer(toy, name="toy")

Out = Annotated[Path, typer.Option("--out", help="Folder for everything that is written.")]


def _pairs(words: Sequence[str], option: str) -> dict[str, str]:
    """`["a=b"]` -> `{"a": "b"}`."""
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise EntangleError(f"{option} needs NAME=VALUE; got {word!r}")
        if name in pairs:
            raise EntangleError(f"{option} {name} is given twice: keep one")
        pairs[name] = value
    return pairs


def _numbers(words: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in words.replace(",", " ").split())
    except ValueError as error:
        raise EntangleError(f"{option} needs numbers such as 0,4,8,12; got {words!r}") from error


@app.command()
def report(
    model: Annotated[str, typer.Argument(help="Directory or hub id of a HuggingFace causal LM or encoder.")],
    data: Annotated[str, typer.Argument(help="JSONL or CSV (maybe .gz) with text and label, or a dataset id.")],
    out: Out = Path("entangle-report"),
    name: Annotated[str, typer.Option(help="What label 1 says; by default the data file's name.")] = "",
    text: Annotated[str, typer.Option(help="The field that holds the text.")] = Settings.text,
    label: Annotated[str, typer.Option(help="The field that holds the label.")] = Settings.label,
    positive: Annotated[str | None, typer.Option(help="The label of DATA that counts as 1, all others as 0.")] = None,
    where: Annotated[list[str] | None, typer.Option(help="FIELD=VALUE: rows of DATA to keep; repeatable.")] = None,
    concept: Annotated[list[str] | None, typer.Option(help="NAME=FILE: a further concept; repeatable.")] = None,
    concept_positive: Annotated[
        list[str] | None, typer.Option(help="NAME=LABEL: the label of that concept that counts as 1; repeatable.")
    ] = None,
    direction: Annotated[str, typer.Option(help="Estimator of the concepts' directions.")] = Settings.direction,
    prompts: Annotated[str | None, typer.Option(help="Texts to continue, with and without steering.")] = None,
    clean: Annotated[str | None, typer.Option(help="Clean text, on which the price is measured.")] = None,
    scorer: Annotated[str | None, typer.Option(help="A HuggingFace text classifier; else a linear scorer.")] = None,
    scorer_label: Annotated[list[str] | None, typer.Option(help="The scorer's label that counts; repeatable.")] = None,
    alphas: Annotated[str, typer.Option(help="Strengths, in standard deviations.")] = ",".join(
        f"{a:g}" for a in Settings.alphas
    ),
    top_k: Annotated[int | None, typer.Option(help="Heads to steer; by default a quarter, at most 30.")] = None,
    samples: Annotated[int, typer.Option(help="Continuations a prompt.")] = Settings.samples,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens a continuation.")] = Settings.max_new_tokens,
    limit: Annotated[int | None, typer.Option(help="Rows of each labelled file to use.")] = None,
    limit_prompts: Annotated[int | None, typer.Option(help="Prompts to use.")] = None,
    limit_clean: Annotated[int | None, typer.Option(help="Clean documents to use, the first ones.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Cut texts to this many tokens.")] = None,
    bos: Annotated[bool, typer.Option("--bos", help="Put the beginning-of-text token before every text.")] = False,
    drop_duplicates: Annotated[bool, typer.Option("--drop-duplicates", help="Keep the first of equal texts.")] = False,
    revision: Annotated[str | None, typer.Option(help="The model's revision on the hub.")] = None,
    dtype: Annotated[str | None, typer.Option(help="The model's floating type, say bfloat16.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to run; by default a GPU if there is one.")] = None,
    batch_tokens: Annotated[int, typer.Option(help="Tokens a batch, padding included.")] = Settings.batch_tokens,
    resamples: Annotated[int, typer.Option(help="Bootstrap resamples of every interval.")] = Settings.resamples,
    permutations: Annotated[int, typer.Option(help="Label permutations of the null.")] = Settings.permutations,
    seed: Annotated[int, typer.Option(help="Decides every random draw.")] = Settings.seed,
) -> None:
    """Measure one concept in one model and write report.html and report.json."""
    from entangle.report import measure, write

    settings = Settings(
        model=model,
        data=data,
        name=name,
        text=text,
        label=label,
        positive=positive,
        where=_pairs(where or [], "--where"),
        concepts=_pairs(concept or [], "--concept"),
        concept_positives=_pairs(concept_positive or [], "--concept-positive"),
        direction=direction,
        prompts=prompts,
        clean=clean,
        scorer=scorer,
        scorer_labels=tuple(scorer_label or ()),
        alphas=_numbers(alphas, "--alphas"),
        top_k=top_k,
        samples=samples,
        max_new_tokens=max_new_tokens,
        limit=limit,
        limit_prompts=limit_prompts,
        limit_clean=limit_clean,
        max_length=max_length,
        bos=bos,
        drop_duplicates=drop_duplicates,
        revision=revision,
        dtype=dtype,
        device=device,
        batch_tokens=batch_tokens,
        resamples=resamples,
        permutations=permutations,
        seed=seed,
    )
    for path in write([measure(settings, cache=out / "cache")], out):
        typer.echo(path)


@app.command()
def demo(out: Out = Path("entangle-demo"), seed: Annotated[int, typer.Option(help="Decides every draw.")] = 0) -> None:
    """Generate a corpus, train two small models on it, and report on both, side by side; nothing is downloaded."""
    from entangle.report import demo as run_demo

    for path in run_demo(out, seed=seed):
        typer.echo(path)


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help="Directory or hub id of a HuggingFace model.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for verify.json.")] = None,
    revision: Annotated[str | None, typer.Option(help="The model's revision on the hub.")] = None,
    dtype: Annotated[str | None, typer.Option(help="The model's floating type, say bfloat16.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to run.")] = None,
) -> None:
    """Check that what is captured equals what the model computes, and that an edit lands."""
    from entangle.models import load
    from entangle.storage.files import write_text
    from entangle.verify import verify as check

    found = check(*load(model, revision=revision, dtype=dtype, device=device), raises=False)
    typer.echo(found)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        typer.echo(write_text(out / "verify.json", found.to_frame().to_json(orient="records", indent=1)))
    if not found.passed:
        sys.exit(FAILED)


@toy.command()
def superposition(
    out: Out = Path("entangle-toy"),
    instances: Annotated[int, typer.Option(help="Random starts of each model.")] = 50,
    cells: Annotated[int, typer.Option(help="Densities and importances of the phase diagram.")] = 20,
    seed: Annotated[int, typer.Option(help="Decides every random draw.")] = 0,
) -> None:
    """Train the autoencoders of Elhage et al. 2022: their geometry, phases and plateaus."""
    from entangle.toy import superposition_study

    superposition_study(n_instances=instances, n_cells=cells, seed=seed, out=out)
    _list(out)


@toy.command()
def data_share(
    out: Out = Path("entangle-toy"),
    seeds: Annotated[int, typer.Option(help="Models of each share.")] = 10,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 4000,
    first_seed: Annotated[int, typer.Option(help="The first of the seeds that are reported.")] = 0,
    selection_seeds: Annotated[int, typer.Option(help="Further models of each share, which only choose.")] = 0,
) -> None:
    """Train transformers on Markov chains, one of them rare: entanglement by every definition (Figure 3)."""
    from entangle.toy import data_share_study

    reported = range(first_seed, first_seed + seeds)
    choosing = range(reported.stop, reported.stop + selection_seeds)
    data_share_study(seeds=reported, selection_seeds=choosing, steps=steps, out=out)
    _list(out)


def _list(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        typer.echo(path)


@app.command()
def compose(
    recipe: Annotated[Path, typer.Argument(help="A .toml or .json recipe.")],
    out: Out = Path("entangle-compose"),
    device: Annotated[str | None, typer.Option(help="Where to train; by default a GPU if there is one.")] = None,
    processes: Annotated[int, typer.Option(help="Train each model in so many processes of this machine.")] = 1,
    apart: Annotated[bool, typer.Option("--apart", help="Train in each of them models of its own.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all that can be, print the plan, stop.")] = False,
) -> None:
    """Train and measure a model for every share and seed of a recipe, and compare them on one page; a run that was
    stopped goes on where it was."""
    from entangle.composition import Plan, Recipe, run_apart
    from entangle.composition.training.processes import launch
    from entangle.report import compose as run_recipe

    read = Recipe.from_file(recipe)
    if dry_run:
        typer.echo(Plan.of(read).summary(out))
        return
    if apart:
        run_apart(read, out, processes, device=device)
    elif processes != 1:
        Plan.of(read)  # to refuse now what would be refused after a day of what can be done together
        launch(processes, _pretrain, recipe, out, device)
    for path in run_recipe(read, out, device=device):
        typer.echo(path)


def _pretrain(recipe: Path, out: Path, device: str | None) -> None:
    """What several processes do together: train and measure the models, and leave training on pairs to one."""
    from entangle.composition import Recipe, run

    run(replace(Recipe.from_file(recipe), posttraining=()), out, device=device)


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line; a refused input is one line on stderr and exit code 2."""
    try:
        app(words, prog_name="entangle")
    except EntangleError as error:
        typer.secho(f"entangle: {' '.join(str(error).split())}", err=True, fg=typer.colors.RED)
        sys.exit(REFUSED)


if __name__ == "__main__":
    main()
