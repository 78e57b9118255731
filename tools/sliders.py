"""Figures with sliders, of the primers: every state is computed and drawn when the book is built, and the page shows one.

A slider that moves asks for another picture (`book/_static/choices.js`), so that the site needs no server that computes.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path


@dataclass(frozen=True)
class Slider:
    """A label, the values that can be chosen, and the one that is shown first."""

    label: str
    values: tuple
    shown: float


@dataclass(frozen=True)
class View:
    """A figure with sliders.

    Attributes
    ----------
    name : str
        Of its files; in capitals also of what a page may call @@NAME_VIEW@@ and @@NAME_value_value@@.
    sliders : tuple of Slider
    fit : callable
        A value per slider -> dict with the number `r`, and what `draw` needs.
    draw : callable
        (figure, fitted, a value per slider): what is to be seen.
    say : callable
        (fitted, a value per slider) -> what the picture shows, in words; and what else its alternative text says.
    """

    name: str
    sliders: tuple[Slider, ...]
    fit: Callable
    draw: Callable
    say: Callable

    def values(self, static: Path) -> dict[str, str]:
        """Draw every state into the site's static files; what a page may name as @@NAME@@."""
        folder = static / self.name
        folder.mkdir(parents=True, exist_ok=True)
        chosen = product(*(slider.values for slider in self.sliders))
        states = {key(values): self.state(values, folder) for values in chosen}
        first = states[key([slider.shown for slider in self.sliders])]
        figure = (
            f'<figure class="choices" data-states="{html.escape(json.dumps(states))}">'
            + "".join(map(control, self.sliders))
            + f'<img src="{first["src"]}" alt="{html.escape(first["alt"])}">'
            + f'<figcaption aria-live="polite">{html.escape(first["said"])}</figcaption></figure>'
        )
        name = self.name.upper()
        numbers = {f"{name}_{k.replace('-', '_')}": f"{x['r']:.2f}" for k, x in states.items()}
        return {f"{name}_VIEW": figure} | numbers

    def state(self, values, folder: Path) -> dict:
        """The picture of one position of the sliders, and what it shows in words."""
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        fitted = self.fit(*values)
        figure = Figure(figsize=(9, 2.8), layout="constrained")
        self.draw(figure, fitted, *values)
        file = folder / f"{key(values)}.svg"
        with rc_context({"svg.hashsalt": self.name}):  # the same file in every build
            FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
        said, more = self.say(fitted, *values)
        alt, src = f"{said}. {more}", f"../_static/{self.name}/{file.name}"
        return {"src": src, "said": said, "alt": alt, "r": fitted["r"]}


def key(values) -> str:
    """Values of the sliders as the page joins them."""
    return "-".join(map(str, values))


def control(slider: Slider) -> str:
    """A labelled slider over its values."""
    listed = html.escape(json.dumps([str(value) for value in slider.values]))
    place = slider.values.index(slider.shown)
    return (
        f'<label>{slider.label} <input type="range" min="0" max="{len(slider.values) - 1}" '
        f'value="{place}" data-values="{listed}" aria-valuetext="{slider.shown}">'
        f"<output>{slider.shown}</output></label>"
    )
