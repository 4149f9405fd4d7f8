"""The figure: valid SVG, the same to the byte, everything named, nothing lost in silence."""

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from seedtune.errors import ConfigError
from seedtune.report import figure
from seedtune.report.figure import Line, Panel

CURVES = Panel("rounds", "test loss (nats)", [
    Line("H = 10", [0, 5, 10], [3.0, 2.0, 1.5], [2.9, 1.8, 1.2], [3.1, 2.2, 1.8]),
    Line("H = 30", [0, 5, 10], [3.0, 1.8, 1.1]),
])  # fmt: skip
SWEEP = Panel("H", "test loss (nats)", [Line("", [10, 30], [1.5, 1.1])], log_x=True, ticks=[(10, "10"), (30, "30")])
NAMED = Panel("", "test loss", [Line("", [0, 1], [1.5, 1.1], [1, 1], [2, 2])], ticks=[(0, "a"), (1, "b")], joined=False)


def elements(svg: str, tag: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(svg).iter(f"{{http://www.w3.org/2000/svg}}{tag}"))


def test_a_figure_is_svg_and_the_same_to_the_byte():
    drawn = [figure.draw("Which H?", "One seed.", [CURVES, SWEEP, NAMED]) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert ElementTree.fromstring(drawn[0]).tag.endswith("svg") and elements(drawn[0], "path")


def test_what_is_drawn_is_what_matplotlib_drew_in_fewer_bytes(monkeypatch):
    panels, note = [CURVES, SWEEP, NAMED], "A note of some length, as figures of studies have it. " * 5
    short = figure.draw("Which H?", note, panels)
    monkeypatch.setattr(figure, "compact", lambda svg: svg)
    drawn = figure.draw("Which H?", note, panels)
    assert len(short) < 0.72 * len(drawn)
    for ours, theirs in zip(pieces(short), pieces(drawn), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            numbers = [[float(n) for n in NUMBER.findall(text)] for text in (ours[name], value)]
            np.testing.assert_allclose(*numbers, rtol=0, atol=0.0051, err_msg=name)
            assert NUMBER.sub("", ours[name]).split() == NUMBER.sub("", value).split()


NUMBER = re.compile(r"(?<![#\w])-?\d+(?:\.\d+)?(?![\w-])")


def pieces(svg: str) -> list[dict[str, str]]:
    """The attributes of all elements, with one way to say where a letter stands, and its whole name."""
    found = []
    for element in ElementTree.fromstring(svg).iter():
        said = {name: re.sub(r"(^|#)g(?=[0-9a-f]+$)", r"\1DejaVuSans-", value) for name, value in element.items()}
        if moved := re.fullmatch(r"translate\((\S+) 0\)", said.get("transform", "")):
            said["x"] = moved[1]
            del said["transform"]
        found.append(said)
    return found


def test_nothing_says_when_it_was_made():
    assert "<dc:date>" not in figure.draw("", "", [CURVES])


def test_title_and_note_can_be_read_by_machines():
    svg = figure.draw("Which H is < best?", "Over 3 seeds.", [CURVES])
    assert "Which H is &lt; best?" in svg and "Over 3 seeds." in svg


def test_each_line_has_a_look_of_its_own():
    labels = [f"case {i}" for i in range(21)]
    looks = {tuple(figure._style(name, labels).items()) for name in labels}
    assert len(looks) == 21


def test_points_that_are_not_finite_are_left_out():
    broken = Panel("rounds", "loss", [Line("a", [0, 1, 2], [3.0, math.nan, 1.0]), Line("b", [0, 1], [math.nan] * 2)])
    assert elements(figure.draw("", "", [broken]), "path")


def test_values_far_apart_get_a_logarithmic_axis():
    def panel(*values):
        return Panel("rounds", "loss", [Line("a", range(len(values)), values)])

    assert figure._spans_much(panel(1.0, 11.0)) and not figure._spans_much(panel(1.0, 9.0))
    assert not figure._spans_much(panel(0.0, 11.0)) and not figure._spans_much(panel(math.nan))


def test_drawing_leaves_no_state_behind():
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure.draw("", "", [CURVES])
    assert dict(matplotlib.rcParams) == before


def test_a_missing_library_is_named_with_the_extra(monkeypatch):
    monkeypatch.setattr(figure, "find_spec", lambda name: None if name == "matplotlib" else object())
    with pytest.raises(ConfigError) as error:
        figure.check_installed()
    assert str(error.value) == (
        "figures and bands need matplotlib, which this installation does not have: pip install '.[report]'"
    )
