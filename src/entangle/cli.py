"""The `entangle` command: subcommands parse words and call the library; an `EntangleError` becomes one line."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from entangle.errors import EntangleError
from entangle.models import check_device
from entangle.progress import hush, is_live
from entangle.storage.out import check_out
from entangle.study import Settings, Study
from entangle.study.question import check_seed
from entangle.study.settings import default_of, flag_of, read_config

FAILED, REFUSED = 1, 2
REPORT = ("report.html", "report.json")
FORECAST = ("forecast.html", "forecast.json")

app = typer.Typer(
    help="How entangled is a concept in a model, and what does it cost to steer it out?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

toy = typer.Typer(help="Toy models, where the truth is known.", no_args_is_help=True)
app.add_typer(toy, name="toy")

Out = Annotated[Path, typer.Option("--out", help="Folder for everything that is written.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the answer and where the results are as one JSON object.")]


def _begin(quiet: bool) -> bool:
    """Whether progress is shown; where nothing can be drawn over, other libraries' bars are turned off."""
    if quiet or not is_live(sys.stderr):
        hush()
    return not quiet


def _end(answer: Sequence[str], paths: Sequence[Path], as_json: bool) -> None:
    """The last words of every command: what was found, and where it is written."""
    if as_json:
        typer.echo(json.dumps({"answer": list(answer), "files": list(map(str, paths))}, ensure_ascii=False))
        return
    for sentence in answer:
        typer.echo(sentence)
    for path in paths:
        typer.echo(path)


def _pairs(words: Sequence[str], option: str) -> dict[str, str]:
    """`["a=b"]` -> `{"a": "b"}`."""
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise EntangleError(f"{option} needs NAME=VALUE; got {word!r}: write both")
        if name in pairs:
            raise EntangleError(f"{option} {name} is given twice: keep one")
        pairs[name] = value
    return pairs


def _numbers(words: str, option: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in words.replace(",", " ").split())
    except ValueError as error:
        raise EntangleError(f"{option} needs numbers such as 0,4,8,12; got {words!r}: write these") from error


def _typed(kind: Any) -> tuple[Any, Callable[[Any, str], Any]]:
    """What typer is to ask for where a field is of this kind, and how its words become the field's value."""
    if get_origin(kind) is UnionType:  # `X | None`: a word that is not given is None in any case
        kind = next(each for each in get_args(kind) if each is not NoneType)
    if get_origin(kind) is Mapping:
        return list[str], _pairs
    if kind == tuple[float, ...]:
        return str, _numbers
    if get_origin(kind) is tuple:
        return list[str], lambda words, option: tuple(words)
    return kind, lambda word, option: word


def takes_settings(command: Callable[..., None], *, without: Sequence[str] = ()) -> Callable[..., None]:
    """A command whose last argument is `Settings`, with an option for each of their fields in its place.

    Args:
        command: The command.
        without: Fields that mean nothing to it.
    """
    hints = get_type_hints(Settings)
    own = list(inspect.signature(command, eval_str=True).parameters.values())[:-1]
    asked, shown = {}, []
    for each in (each for each in fields(Settings) if each.name not in without):
        kind, read = _typed(hints[each.name])
        asked[each.name] = (flag_of(each), read)
        default = default_of(each)
        if default is MISSING:
            info: Any = typer.Argument(help=each.metadata["help"], show_default=False, metavar=each.name.upper())
        else:
            words = [] if default in ({}, (), None, False, "") else _written_default(default)
            says = each.metadata["help"] + (f" By default {words}." if words else "")
            flag = flag_of(each)
            info = typer.Option(
                f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
                help=says,
                show_default=False,
                rich_help_panel=each.metadata["group"],
            )
        annotation = Annotated[kind | None, info]  # type: ignore[valid-type]
        shown.append(inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))

    def run(*, config: Path | None, **words: Any) -> None:
        values = {} if config is None else read_config(config)
        for name, (flag, read) in asked.items():
            word = words.pop(name)
            if word is not None and word != []:
                values[name] = read(word, flag)
        source = str(config) if config else "the options"
        settings = Settings.from_dict({"model": "", "data": "", **values}, source)
        lacking = [name.upper() for name in ("model", "data") if name not in values]
        if lacking:
            raise EntangleError(f"MODEL and DATA are needed; got no {' and no '.join(lacking)}: name both")
        command(settings=settings, **words)

    config = Annotated[
        Path | None, typer.Option("--config", help="TOML with the same names; options here come before it.")
    ]
    parameters = [
        *shown,
        *(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own),
        inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=config),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


def _written_default(default: Any) -> str:
    several = default if isinstance(default, tuple) else (default,)
    return ",".join(each if isinstance(each, str) else f"{each:g}" for each in several)


@app.command()
@takes_settings
def report(
    out: Out = Path("entangle-report"), quiet: Quiet = False, as_json: AsJson = False, *, settings: Settings
) -> None:
    """Measure one concept in one model and write report.html and report.json."""
    from entangle.report import check_pages, measure, write

    settings.check()
    check_pages(out, *REPORT)
    study = measure(settings, cache=out / "cache", progress=_begin(quiet))
    _end(study.sentences(), write([study], out), as_json)
    _tell_missing([study])


NO_STEERING = (
    *(
        "forecast",
        "prompts",
        "scorer",
        "scorer_labels",
        "alphas",
        "costs",
        "methods",
        "samples",
        "max_new_tokens",
        "limit_prompts",
    ),
    *("direction", "bos", "batch_tokens", "resamples", "permutations"),
)
"""Settings that a forecast does without."""


@app.command()
@partial(takes_settings, without=NO_STEERING)
def forecast(
    out: Out = Path("entangle-forecast"), quiet: Quiet = False, as_json: AsJson = False, *, settings: Settings
) -> None:
    """Say what steering each concept out would cost, layer by layer, before anyone steers; needs --clean."""
    from entangle.report import check_pages
    from entangle.report import forecast as foretell

    check_pages(out, *FORECAST)
    prediction, paths = foretell(settings, out, progress=_begin(quiet))
    _end(prediction.answer(), paths, as_json)


def _tell_missing(studies: Sequence[Study]) -> None:
    """What was asked for and could not be measured, a line each; then the exit code says so too."""
    lines = [
        f"{study.label}: {what} was not measured: {why}" for study in studies for what, why in study.missing.items()
    ]
    for line in lines:
        typer.secho(f"entangle: {line}", err=True, fg=typer.colors.YELLOW)
    if lines:
        sys.exit(FAILED)


@app.command()
def demo(
    out: Out = Path("entangle-demo"),
    seed: Annotated[int, typer.Option(help="Decides every draw.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Train and measure less; the models may know less than they should.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Plant a concept with and without company, train a small model on each, and report on both; no download."""
    from entangle.report import check_pages
    from entangle.report import demo as run_demo

    check_seed(seed)
    check_pages(out, *REPORT)
    processes = min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    paths = run_demo(out, seed=seed, quick=quick, processes=processes, progress=_begin(quiet))
    found = json.loads(paths[-1].read_text(encoding="utf-8"))
    each = [f"{study['label']}: {sentence}" for study in found["studies"] for sentence in study["answer"]]
    small = ["This was the quick demo: smaller models' training and fewer texts than without --quick."] if quick else []
    _end([*found["answer"], *each, *small], paths, as_json)


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help="Directory, hub id or .gguf file of a model.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for verify.json.")] = None,
    revision: Annotated[str | None, typer.Option(help="The model's revision on the hub.")] = None,
    dtype: Annotated[str | None, typer.Option(help="The model's floating type, say bfloat16.")] = None,
    device: Annotated[str | None, typer.Option(help="Where to run.")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Check that what is captured equals what the model computes, and that an edit lands."""
    from entangle.models import load
    from entangle.verify import check_place
    from entangle.verify import verify as check

    if out:
        check_place(out)
    _begin(quiet)
    outcome = check(*load(model, revision=revision, dtype=dtype, device=device), raises=False)
    failed = [each.name for each in outcome.checks if each.passed is False]
    answer = f"Of {len(outcome.checks)} checks, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}."
    if not as_json:
        typer.echo(outcome)
    _end([answer], [outcome.save(out)] if out else [], as_json)
    if not outcome.passed:
        sys.exit(FAILED)


@toy.command()
def superposition(
    out: Out = Path("entangle-toy"),
    instances: Annotated[int, typer.Option(help="Random starts of each model.")] = 50,
    cells: Annotated[int, typer.Option(help="Densities and importances of the phase diagram.")] = 20,
    seed: Annotated[int, typer.Option(help="Decides every random draw.")] = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train the autoencoders of Elhage et al. 2022: their geometry, phases and plateaus."""
    from entangle.toy import superposition_study

    check_seed(seed)
    _check_counts(instances=instances, cells=cells)
    check_out(out)
    study = superposition_study(n_instances=instances, n_cells=cells, seed=seed, progress=_begin(quiet), out=out)
    _end(study.answer(), sorted(out.iterdir()), as_json)


@toy.command()
def data_share(
    out: Out = Path("entangle-toy"),
    seeds: Annotated[int, typer.Option(help="Models of each share.")] = 10,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 4000,
    first_seed: Annotated[int, typer.Option(help="The first of the seeds that are reported.")] = 0,
    selection_seeds: Annotated[int, typer.Option(help="Further models of each share, which only choose.")] = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train transformers on Markov chains, one of them rare: entanglement by every definition (Figure 3)."""
    from entangle.toy import data_share_study

    check_seed(first_seed)
    _check_counts(seeds=seeds, steps=steps)
    check_out(out)
    reported = range(first_seed, first_seed + seeds)
    choosing = range(reported.stop, reported.stop + selection_seeds)
    study = data_share_study(seeds=reported, selection_seeds=choosing, steps=steps, progress=_begin(quiet), out=out)
    _end(study.answer(), sorted(out.iterdir()), as_json)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise EntangleError(f"--{name} must be at least 1; got {count}: give more")


@app.command()
def compose(
    recipe: Annotated[Path, typer.Argument(help="A .toml or .json recipe.")],
    out: Out = Path("entangle-compose"),
    device: Annotated[str | None, typer.Option(help="Where to train; by default a GPU if there is one.")] = None,
    processes: Annotated[int, typer.Option(help="Train each model in so many processes of this machine.")] = 1,
    apart: Annotated[bool, typer.Option("--apart", help="Train in each of them models of its own.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all that can be, print the plan, stop.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train and measure a model for every share and seed of a recipe, and compare them on one page; a run that was
    stopped goes on where it was."""
    from entangle.composition import Plan, Recipe, run_apart
    from entangle.composition.training.processes import launch
    from entangle.report import check_pages
    from entangle.report import compose as run_recipe

    read = Recipe.from_file(recipe)
    check_pages(out, *REPORT)
    if device is not None:
        check_device(device)
    if dry_run:
        typer.echo(Plan.of(read).summary(out))
        return
    progress = _begin(quiet)
    if apart:
        run_apart(read, out, processes, device=device, progress=progress)
    elif processes != 1:
        Plan.of(read)  # to refuse now what would be refused after a day of what can be done together
        launch(processes, _pretrain, recipe, out, device, progress)
    paths = run_recipe(read, out, device=device, progress=progress)
    compared = [path for path in paths if path.name == REPORT[-1]]
    _end(json.loads(compared[0].read_text(encoding="utf-8"))["answer"] if compared else [], paths, as_json)


def _pretrain(recipe: Path, out: Path, device: str | None, progress: bool) -> None:
    """What several processes do together: train and measure the models, and leave training on pairs to one."""
    from entangle.composition import Recipe, run

    run(replace(Recipe.from_file(recipe), posttraining=()), out, device=device, progress=progress)


def main(words: Sequence[str] | None = None) -> None:
    """Run the command line; a refused input is one line on stderr and exit code 2."""
    try:
        app(words, prog_name="entangle")
    except EntangleError as error:
        _refuse(str(error))
    except OSError as error:  # a disk that is full, a folder that was taken away meanwhile
        where = f" {error.filename}" if error.filename else ""
        _refuse(f"cannot read or write{where}: {error.strerror or error}; choose another --out, or free some space")


def _refuse(reason: str) -> None:
    typer.secho(f"entangle: {' '.join(reason.split())}", err=True, fg=typer.colors.RED)
    sys.exit(REFUSED)


if __name__ == "__main__":
    main()
