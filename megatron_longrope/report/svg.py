"""Matplotlib figures as inline SVG, which takes colours and font from the page."""

from __future__ import annotations

import io
import re

from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from megatron_longrope.report.style import THEME, all_looks

_VARIABLES = THEME | {look.light: look.variable for look in all_looks()}
_HEX = re.compile(r"#[0-9a-f]{6}\b")
_ID = re.compile(r'(\bid="|url\(#|href="#)([^")]+)')


def inline_svg(figure: Figure, name: str, description: str) -> Markup:
    """Returns the figure as an `<svg>` element for HTML.

    It has no header and no metadata, ids that begin with `name` (several figures share a page),
    CSS variables for colours, text in the page's font, and `description` for screen readers.
    """
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(
        buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", text).replace("xlink:href", "href")
    text = _ID.sub(lambda match: f"{match[1]}{name}-{match[2]}", text)
    text = _HEX.sub(lambda match: _variable(match[0]), text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    label = str(Markup.escape(description))
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1))


def _variable(colour: str) -> str:
    name = _VARIABLES.get(colour)
    return f"var(--{name}, {colour})" if name else colour
