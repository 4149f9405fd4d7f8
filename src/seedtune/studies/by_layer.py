"""Is the effective rank low, in which layers, and does tuning change it?

Three ranks of the same Hessian (`analysis.block_ranks`), since they say different things: the theory bounds
tr(H)/|H|, in which curvature of both signs cancels; the stable rank is a lower bound of tr|H|/|H| in which nothing
does. Seeds have other examples, other partitions and other random starts: bands over seeds are about all of these.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from ..analysis.estimates import DIGITS, Estimate, estimate
from ..report import figure
from .findings import amount, seeds
from .measured import Measured
from .study import Case, Draw, Measure, Study

R = 200
"""The bound on the effective rank that FedMeZO's reviewers ask about."""
START, TUNED, WHOLE = "start", "tuned", "whole"
ABSOLUTE = ("absolute trace / norm, at least", "the same, half the steps")
Place = TypeVar("Place")
EDGES = ("before the layers", "behind the layers")


def parts_of(measured: Measured, case: str) -> list[str]:
    """The whole and the blocks that were measured of a case."""
    first = next((one for one in measured.taken if one.case == case), None)
    return list(dict.fromkeys(one.part for one in first.kept.readings)) if first else []


def finding(measured: Measured) -> str:
    """The stable ranks of the wholes, the largest of a layer, and whether the ranks stay below R."""
    cases = list(dict.fromkeys(one.case for one in measured.taken))
    told = "; ".join(_whole(measured, case) for case in cases)
    return f"{seeds(measured)}, {told}; {_largest(measured, cases)}; {_absolute(measured, cases)}."


def _whole(measured: Measured, case: str) -> str:
    start, tuned = (measured.over_seeds(case, name, "stable rank", WHOLE) for name in (START, TUNED))
    losses = [(run.rows[0]["loss"], run.loss) for run in measured[case].runs]
    before, after = (estimate(side) for side in zip(*losses, strict=True))
    return (
        f"{case}: the stable rank of the whole Hessian is {_amount(start, 1)} at the start "
        f"(test loss {_amount(before)}) and {_amount(tuned, 1)} tuned ({_amount(after)})"
    )


def _amount(one: Estimate | None, digits: int = DIGITS) -> str:
    return amount(one, digits) if one else "not known"


def _largest(measured: Measured, cases: list[str]) -> str:
    """The largest stable rank of a layer, and how many of all are surely below R."""
    found = [
        (one, f"{case}, {part}, {name}") for case in cases for part in parts_of(measured, case) if part != WHOLE
        for name in (START, TUNED) if (one := measured.over_seeds(case, name, "stable rank", part))
    ]  # fmt: skip
    if not found:
        return "no layer was measured"
    largest, where = max(found, key=lambda each: each[0].mean)
    below = sum(one.high <= R for one, _ in found)
    told = f"{below} of {len(found)} lie below {R} with their bands"
    return f"the largest of a layer is {amount(largest, 1)} ({where}), {told}"


def _absolute(measured: Measured, cases: list[str]) -> str:
    """tr|H|/|H| of the wholes, from below, and what half of the steps gave."""
    told = [f"{case}, {name}: {_at_least(measured, case, name)}" for case in cases for name in (START, TUNED)]
    return f"tr|H|/|H|, which a bound r without cancellation would have to meet, is at least {', '.join(told)}"


def _at_least(measured: Measured, case: str, name: str) -> str:
    full, half = (measured.over_seeds(case, name, quantity, WHOLE) for quantity in ABSOLUTE)
    return f"{_amount(full, 0)} ({_amount(half, 0)} with half of the steps)"


def layers_panel(name: str) -> Draw:
    """The stable rank of each block, from the embedding to the last norm."""

    def draw(measured: Measured) -> figure.Panel:
        cases = list(dict.fromkeys(one.case for one in measured.taken))
        parts = {part for case in cases for part in parts_of(measured, case)} - {WHOLE}
        order = [EDGES[0], *sorted(parts - set(EDGES), key=lambda part: (len(part), part)), EDGES[1]]
        lines = [_line(case, order, partial(measured.over_seeds, case, name, "stable rank"))
                 for case in cases]  # fmt: skip
        ticks = [(place, _short(part)) for place, part in enumerate(order)]
        return figure.Panel(
            f"block, {name}", "stable rank (bars that reach 0 are cut)", lines, log_y=True, ticks=ticks, joined=False
        )

    return draw


def _short(part: str) -> str:
    return part.removesuffix(" the layers").removeprefix("layer ")


def _line(label: str, order: Sequence[Place], of: Callable[[Place], Estimate | None]) -> figure.Line:
    """The blocks that there are; a band that reaches 0 ends at half the mean on a logarithmic axis."""
    found = [(place, one) for place, part in enumerate(order) if (one := of(part))]
    places, ones = [place for place, _ in found], [one for _, one in found]
    if any(one.half_width is None for one in ones):
        return figure.Line(label, places, [one.mean for one in ones])
    lows = [one.low if one.low > 0 else one.mean / 2 for one in ones]
    return figure.Line(label, places, [one.mean for one in ones], lows, [one.high for one in ones])


def whole_panel(measured: Measured) -> figure.Panel:
    """Both ranks without cancellation of each whole Hessian, start and tuned, beside R."""
    named = list(dict.fromkeys((one.case, one.name) for one in measured.taken))
    stable = _line("stable rank", named, lambda pair: measured.over_seeds(*pair, "stable rank", WHOLE))
    absolute = _line("tr|H|/|H|, at least", named, lambda pair: measured.over_seeds(*pair, ABSOLUTE[0], WHOLE))
    bound = figure.Line(f"r = {R}", range(len(named)), [R] * len(named))
    ticks = [(place, f"{case}, {name}") for place, (case, name) in enumerate(named)]
    return figure.Panel(
        "", "rank of the whole Hessian", [stable, absolute, bound], log_y=True, ticks=ticks, joined=False
    )


OF_ALL = {"model": {"adapter": "none", "trainable": ()}}

BY_LAYER = Study(
    "effective-rank-by-layer",
    "Is the effective rank low, in which layers, and does tuning change it?",
    "FedMeZO's assumption tr(H)/|H| <= r; asked for by its reviewers: by layer and task, is r <= 200?",
    (Case("", measures=(Measure(START, "block-ranks"), Measure(TUNED, "block-ranks", "end"))),),
    finding,
    (layers_panel(START), layers_panel(TUNED), whole_panel),
    base={
        **OF_ALL,
        "task": {"max_eval": 100},
        "federation": {"upload": "weights", "num_rounds": 10, "local_steps": 5, "batch_size": 8},
        "local": {"order": "first", "optimizer": "adamw", "learning_rate": 3e-4},
        "run": {"eval_every": 10, "method": "fedavg"},
    },
    fixed=OF_ALL,
    over_subjects=True,
)

STUDIES = (BY_LAYER,)
