"""The house keeps its floors: a room imports only rooms below it, there is no circle, and importing stays light."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from entangle.moved import MOVED, NAMES

SOURCE = Path(__file__).resolve().parent.parent / "src" / "entangle"
FLOORS = {
    "errors": 0,
    "moved": 0,
    "progress": 0,
    "storage": 1,
    "metrics": 1,
    "plots": 1,
    "data": 1,
    "models": 2,
    "probes": 3,
    "activations": 3,
    "directions": 4,
    "interventions": 5,
    "verify": 6,
    "forecast": 6,
    "learning": 6,
    "evaluation": 7,
    "concepts": 8,
    "study": 9,
    "toy": 9,
    "composition": 10,
    "report": 11,
    "examples": 11,
    "cli": 12,
}
HEAVY = (
    *("transformer_lens", "matplotlib", "datasets", "lm_eval", "peft", "gguf", "nnsight", "nnterp", "sae_lens"),
    *("steering_vectors", "repeng", "onnx", "skl2onnx", "polars", "vllm"),
)


def imports(path: Path) -> set[str]:
    """The entangle modules that a file imports anywhere in it, in functions and for types too, as dotted names below
    `entangle`; `from package import module` is the module."""
    return imported(path.read_text(), path.relative_to(SOURCE).with_suffix("").parts)


def imported(source: str, package: tuple[str, ...]) -> set[str]:
    """The entangle modules that a source imports, for a module at the place `package` below `entangle`."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {name.name.removeprefix("entangle.") for name in node.names if name.name.startswith("entangle.")}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level]) if node.level else ""
            module = node.module or ""
            if node.level == 0 and not (module == "entangle" or module.startswith("entangle.")):
                continue
            module = ".".join(filter(None, [base, module.removeprefix("entangle").removeprefix(".")]))
            names = {".".join(filter(None, [module, name.name])) for name in node.names}
            submodules = {name for name in names if is_module(name)}
            modules |= submodules
            if module and submodules != names:
                modules.add(module)
    return modules


def is_module(name: str) -> bool:
    """Whether a dotted name below `entangle` is a module or a package."""
    place = SOURCE.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


FILES = sorted(path for path in SOURCE.rglob("*.py") if path.parent != SOURCE or path.stem != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    room = path.relative_to(SOURCE).with_suffix("").parts[0]
    for imported in imports(path):
        other = imported.split(".")[0]
        assert other == room or FLOORS[other] < FLOORS[room], f"{room} (floor {FLOORS[room]}) imports {imported}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_across_rooms_only_what_a_room_shows_is_imported(path: Path) -> None:
    room = path.relative_to(SOURCE).with_suffix("").parts[0]
    hidden = {
        f"{module}.{name}"
        for module, name in names_imported(path.read_text())
        if (other := module.split(".")[0]) != room
        and (SOURCE / other).is_dir()
        and name not in importlib.import_module(f"entangle.{other}").__all__
    }
    assert hidden == set(), "show these names in their room's __init__ and its __all__, or do without"


def names_imported(source: str) -> list[tuple[str, str]]:
    """What a source imports from a module below `entangle`: module and name."""
    return [
        (node.module.removeprefix("entangle."), name.name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("entangle.")
        for name in node.names
    ]


def test_a_name_that_its_room_does_not_show_is_noticed() -> None:
    source = "def f():\n    from entangle.models.rows import encode as e, _own\nfrom entangle import plots\n"
    assert names_imported(source) == [("models.rows", "encode"), ("models.rows", "_own")]
    assert "_own" not in importlib.import_module("entangle.models").__all__


def test_there_is_no_import_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        # A package's __init__ gathers its modules; modules import each other by their own names, so only files count.
        if path.stem != "__init__":
            graph[name] = {other for other in imports(path) if other != name}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_a_circle_is_noticed() -> None:
    with pytest.raises(ValueError, match="cycle"):
        list(TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())


def test_modules_are_noticed_however_they_are_imported() -> None:
    source = "def draw():\n    from entangle.toy import figures, MarkovMixture\n    import entangle.plots\n"
    assert imported(source, ("toy", "planted")) == {"toy.figures", "toy", "plots"}
    assert imported("from entangle.toy import figures", ("toy", "planted")) == {"toy.figures"}
    assert imported("from . import figures", ("toy", "planted")) == {"toy.figures"}
    assert imported("if TYPE_CHECKING:\n    from .figures import gram", ("toy", "planted")) == {"toy.figures"}
    assert imported("from entangle import plots, errors\nimport numpy", ("cli",)) == {"plots", "errors"}


def test_folders_stay_small() -> None:
    folders = Counter(str(path.parent.relative_to(SOURCE)) for path in SOURCE.rglob("*.py"))
    assert {folder: n for folder, n in folders.items() if n > 15} == {}


def test_importing_entangle_leaves_heavy_libraries_alone() -> None:
    script = f"import sys, entangle; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_modules_stay_small() -> None:
    long = {str(path.relative_to(SOURCE)): n for path in FILES if (n := len(path.read_text().splitlines())) > 400}
    assert long == {}


@pytest.mark.parametrize(("old", "new"), MOVED.items())
def test_a_path_of_before_is_the_module_of_today(old: str, new: str) -> None:
    module = importlib.import_module(f"entangle.{new}")
    sys.modules.pop(f"entangle.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"entangle.{new}"):
        assert importlib.import_module(f"entangle.{old}") is module
    assert module.__spec__ is not None
    assert module.__spec__.name == f"entangle.{new}"


@pytest.mark.parametrize(("old", "new"), NAMES.items())
def test_a_name_of_before_is_the_thing_of_today(old: str, new: str) -> None:
    there, here = (path.rpartition(".") for path in (old, new))
    room, owner = (importlib.import_module(f"entangle.{path[0]}") for path in (there, here))
    assert getattr(room, there[2]) is getattr(owner, here[2])
    assert there[2] not in room.__all__


def test_a_path_that_never_was_is_no_module() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("entangle.evaluation.never")


def test_the_map_shows_every_room_on_its_floor() -> None:
    table = re.findall(
        r"^\| (\d+) \| `(\w+)(?:/|\.py)` \|", (SOURCE.parents[1] / "docs/architecture.md").read_text(), re.M
    )
    assert {room: int(floor) for floor, room in table} == FLOORS
