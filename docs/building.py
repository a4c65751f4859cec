"""What is done to the pages while they are built, so that no reader's browser needs a network.

Formulae become MathML; the one script that the theme would load from elsewhere lies beside the pages.
"""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
SIMPLER = {r"\tfrac": r"\frac", r"\lvert": "|", r"\rvert": "|", r"\lVert": r"\|", r"\rVert": r"\|"}


def on_page_content(content: str, **_: object) -> str:
    """What mkdocs calls with a page's HTML."""
    return FORMULA.sub(_written, content)


SHIM, OWN = "https://unpkg.com/iframe-worker/shim", "assets/iframe-worker.js"
UNNAMED = '<div class="md-search" data-md-component="search" role="dialog"'  # which a screen reader could not announce


def on_post_page(output: str, page: object, **_: object) -> str:
    """What mkdocs calls with a finished page."""
    nearby = "../" * str(getattr(page, "url", "")).count("/") + OWN
    return output.replace(SHIM, nearby).replace(UNNAMED, UNNAMED + ' aria-label="Search"')


def on_post_template(output_content: str, **_: object) -> str:
    """What mkdocs calls with the page of what is not found."""
    return output_content.replace(SHIM, OWN)


def _written(found: re.Match[str]) -> str:
    tex = html.unescape(found[3])
    for command, simpler in SIMPLER.items():
        tex = re.sub(re.escape(command) + r"(?![A-Za-z])", lambda _, to=simpler: to, tex)
    written = convert(tex, display="block" if found[2] == "[" else "inline")
    if left := re.search(r"\\[A-Za-z]+", written):
        raise ValueError(f"latex2mathml does not know {left[0]}, in {found[3]}: write it otherwise")
    return f'<{found[1]} class="formula">{written}</{found[1]}>'
