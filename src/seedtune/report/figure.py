"""A figure as an SVG text: panels side by side, lines with bands, one legend.

Guarantees: the same input gives the same text, to the byte, with one version of matplotlib: no date, no random ids, no
state of pyplot. Lines are told apart by colour (Okabe and Ito 2008, made for colour-blind readers), marker and dash.
Letters are drawn as paths, so the picture is the same wherever it is shown.

Nothing here knows what a run or a study is.
"""

import io
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from ..errors import ConfigError, install_hint

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", ":")
PANEL_INCHES = (5.0, 3.5)
LEGEND_LINE_INCHES = 0.22
SPAN_OF_A_LOG_AXIS = 10.0
"""Values of one sign that span a larger factor are shown on a logarithmic axis."""
WRITTEN_OUT = 1e4
MOST_MARKERS, LETTERS_OF_A_PANEL = 12, 34
_SETTINGS: Any = {"svg.hashsalt": "seedtune", "svg.fonttype": "path", "font.size": 10, "axes.titlesize": 10}


@dataclass(frozen=True)
class Line:
    """Points of one line, in order of x; `low` and `high` bound its band, None where there is none.

    A point with a value that is not finite is left out, and the line is broken there. The line with label "" is black
    and not named.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    `ticks`: places on the x axis and what is written there, for points that stand apart, each with a bar for its band;
    empty for curves, with areas for bands. `joined`: a line goes through the points.
    """

    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    ticks: Sequence[tuple[float, str]] = ()
    joined: bool = True


def check_installed() -> None:
    """
    Raises:
        ConfigError: a library that figures and bands need is missing, and how to get it.
    """
    missing = [name for name in ("matplotlib", "scipy") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"figures and bands need {' and '.join(missing)}, which this installation does not have: "
            f"{install_hint('report')}"
        )


def draw(title: str, note: str, panels: Sequence[Panel]) -> str:
    """The figure as SVG.

    `title` is shown above the panels, `note` below; both are wrapped. A line of the same label looks the same in every
    panel and is named once.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(_SETTINGS):
        labels = list(dict.fromkeys(line.label for panel in panels for line in panel.lines if line.label))
        width, columns = PANEL_INCHES[0] * len(panels), _legend_columns(labels, len(panels))
        below = LEGEND_LINE_INCHES * (math.ceil(len(labels) / columns) + _num_lines(note, width) + 1)
        above = LEGEND_LINE_INCHES * (_num_lines(title, width) + 0.3)
        figure = Figure(figsize=(width, PANEL_INCHES[1] + above + below))
        FigureCanvasSVG(figure)
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw_panel(axes, panel, labels)
        height = figure.get_figheight()
        figure.suptitle(_wrapped(title, width), x=0.02, y=1 - 0.08 / height, ha="left", va="top", fontsize=11)
        figure.text(0.02, 0.08 / height, _wrapped(note, width), ha="left", va="bottom", fontsize=9)
        _draw_legend(figure, labels, columns, LEGEND_LINE_INCHES * (_num_lines(note, width) + 0.5) / height)
        figure.tight_layout(rect=(0, below / height, 1, 1 - above / height))
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Title": title, "Description": note})
    return compact(text.getvalue())


def compact(svg: str) -> str:
    """What matplotlib wrote, in two thirds of the bytes: places to a hundredth of a point, and no indentation.

    Most of it are letters. Their shapes are written once and referred to, here by short names and a plain x.
    """
    short = re.sub(r"\s*\n\s*", "\n", svg).replace("DejaVuSans-", "g")
    short = re.sub(r'transform="translate\(([\d.]+) 0\)"/>', r'x="\1"/>', short)
    return re.sub(r' (?:d|x|y)="[^"]+"', lambda places: re.sub(r"-?\d+\.\d{3,}", _hundredths, places[0]), short)


def _hundredths(found: re.Match) -> str:
    return f"{float(found[0]):.2f}".rstrip("0").rstrip(".")


def _draw_panel(axes, panel: Panel, labels: Sequence[str]) -> None:
    for line in panel.lines:
        style = _style(line.label, labels) | ({} if panel.joined else {"linestyle": "none"})
        axes.plot(line.x, line.y, markevery=max(1, len(line.x) // MOST_MARKERS), **style)
        if line.low is not None and line.high is not None:
            _draw_band(axes, line, style["color"], bool(panel.ticks))
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    if panel.log_x:
        axes.set_xscale("log")
    else:
        axes.locator_params(axis="x", integer=True)
    if panel.log_y or _spans_much(panel):
        _draw_log_scale(axes)
    if panel.ticks:
        _draw_ticks(axes, panel)
    axes.grid(True, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_log_scale(axes) -> None:
    """Logarithmic; numbers below ten thousand are written out, some between powers of ten where there is room."""
    from matplotlib.ticker import LogFormatter

    axes.set_yscale("log")
    if axes.get_ylim()[1] < WRITTEN_OUT:
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.6)))


def _draw_band(axes, line: Line, colour: str, in_points: bool) -> None:
    if in_points:
        axes.vlines(line.x, line.low, line.high, color=colour, linewidth=1.5)
    else:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.2, linewidth=0)


def _draw_ticks(axes, panel: Panel) -> None:
    places, names = zip(*panel.ticks, strict=True)
    is_long = sum(map(len, names)) > LETTERS_OF_A_PANEL
    turned = {"rotation": 20, "ha": "right", "rotation_mode": "anchor"} if is_long else {}
    axes.set_xticks(places, names, **turned)
    axes.set_xticks([], minor=True)
    if not panel.log_x:
        axes.set_xlim(min(places) - 0.5, max(places) + 0.5) if not panel.joined else axes.margins(x=0.08)


def _style(label: str, labels: Sequence[str]) -> dict:
    index = labels.index(label) if label else -1
    return {
        "color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)] if label else "o",
        "markersize": 4.5, "linestyle": DASHES[max(index, 0) // len(COLOURS) % len(DASHES)], "linewidth": 1.6,
    }  # fmt: skip


def _spans_much(panel: Panel) -> bool:
    values = [value for line in panel.lines for value in line.y if math.isfinite(value)]
    return bool(values) and min(values) > 0 and max(values) / min(values) > SPAN_OF_A_LOG_AXIS


def _draw_legend(figure, labels: Sequence[str], columns: int, bottom: float) -> None:
    from matplotlib.lines import Line2D

    if labels:
        handles = [Line2D([], [], label=label, **_style(label, labels)) for label in labels]
        figure.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, bottom), ncols=columns, frameon=False)


def _legend_columns(labels: Sequence[str], num_panels: int) -> int:
    longest = max((len(label) for label in labels), default=1)
    return max(1, min(len(labels), 60 * num_panels // (longest + 8)))


def _wrapped(text: str, width: float) -> str:
    return "\n".join(textwrap.wrap(text, int(width * 13)))


def _num_lines(text: str, width: float) -> int:
    return _wrapped(text, width).count("\n") + 1
