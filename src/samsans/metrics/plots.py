"""Plots as SVG that take the ink of the page they stand in."""

from __future__ import annotations

import io as streams
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, FAINT = "#010203", "#040506"  # stand-ins that become the page's own text and line colours


def style(name: str) -> AbstractContextManager[None]:
    """The settings to draw with; the same ``name``, unique in its page, gives the same bytes."""
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "font.size": 10,
        "text.parse_math": False,
        "text.color": INK,
    }
    return matplotlib.rc_context(settings)


def dress(axes: Axes, title: str) -> None:
    """Title, ticks and frame as all plots have them."""
    axes.set_title(title, color=INK, loc="left", fontweight="bold")
    axes.tick_params(colors=INK, length=0)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def svg(figure: Figure, name: str) -> str:
    """The figure as an ``svg`` element whose ids are its own; call it inside ``style``."""
    buffer = streams.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace(FAINT, "var(--line)")
    for mark in ('id="', 'href="#', "url(#"):
        text = text.replace(mark, f"{mark}{name}-")
    return text
