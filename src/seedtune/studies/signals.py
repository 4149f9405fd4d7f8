"""Does it matter which signal sets each client's learning rate, where clients are more and more unlike?

Dirichlet's alpha says how unlike they are; runs of one seed have the same partition, batches and directions, whatever
the policy, so what a policy changes is the difference to `fixed` seed by seed.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

from ..analysis.estimates import Estimate, estimate
from ..report import figure
from .fedmezo import STRATEGIES
from .findings import seeds
from .measured import Measured, Result, Run
from .measuring import sure
from .study import Axis, Case, Draw, Measure, Study

ALPHAS = (0.1, 10.0)
REFERENCE = "fixed"
RECORDS = Measure("records", "rate-signals", "end")
BOOTSTRAP_KEY, BESIDE = 0, 1.1


def unsteadiness(run: Run) -> float:
    """The mean absolute change of the training loss from one round to the next, in nats."""
    losses = [_known(row["train_loss"]) for row in run.rows[1:]]
    return sum(abs(one - other) for one, other in pairwise(losses)) / max(1, len(losses) - 1)


def mean_loss(run: Run) -> float:
    """Of all evaluations after the start: the lower, the sooner the loss fell."""
    found = [_known(row["loss"]) for row in run.evaluated[1:]]
    return sum(found) / len(found)


def _known(loss: float | None) -> float:
    return math.inf if loss is None else loss


QUALITIES = {"final test loss": lambda run: run.loss, "mean test loss": mean_loss, "unsteadiness": unsteadiness}


def difference(measured: Measured, policy: str, alpha: float, quality: str) -> Estimate | None:
    """A policy's less that of `fixed`, seed by seed, whose partition, batches and directions are the same. None where
    one of the two diverged, or was left out."""
    of, mine, its = QUALITIES[quality], _at(measured, policy, alpha), _at(measured, REFERENCE, alpha)
    if mine is None or its is None:
        return None
    return estimate([of(one) - of(other) for one, other in zip(mine.runs, its.runs, strict=True)])


def _at(measured: Measured, policy: str, alpha: float) -> Result | None:
    return next((one for one in measured.results if (one.series, one.x) == (policy, alpha)), None)


def finding(measured: Measured) -> str:
    """Which policies change anything against `fixed`, and whether rates and losses follow how unlike clients are."""
    alphas = _alphas(measured)
    told = "; ".join(_changes(measured, alphas, quality) for quality in QUALITIES)
    return f"{seeds(measured)}, against {REFERENCE} seed by seed: {told}; {_seen(measured)}."


def _alphas(measured: Measured) -> list[float]:
    return sorted({sure(one.x) for one in measured.results})


def _changes(measured: Measured, alphas: Sequence[float], quality: str) -> str:
    """The differences beyond their band; or that there are none, and how wide the bands are."""
    found = {
        (policy, alpha): one for policy in STRATEGIES[1:] for alpha in alphas
        if (one := difference(measured, policy, alpha, quality)) and one.half_width is not None
    }  # fmt: skip
    if not found:
        return f"{quality}, nothing to tell on one seed"
    beyond = [f"{policy} at alpha {alpha:g} {one.mean:+.4f} ± {one.half_width:.4f}"
              for (policy, alpha), one in found.items() if one.low > 0 or one.high < 0]  # fmt: skip
    if beyond:
        return f"{quality}, {len(beyond)} of {len(found)} differences lie beyond their band ({', '.join(beyond)})"
    widest = max(sure(one.half_width) for one in found.values())
    return f"{quality}, none of {len(found)} differences lies beyond its band (at most ± {widest:.4f})"


def _seen(measured: Measured) -> str:
    """Spearman's correlations: of a client's signal with its labels' distance, over the clients of all partitions."""
    told = [f"{name} {one.value:.2f} ({one.low:.2f} to {one.high:.2f})"
            for name, one in pooled(measured).items() if one.low is not None]  # fmt: skip
    return (
        f"a client's mean signal goes with the distance of its labels from everyone's, over the clients of all "
        f"partitions, by Spearman's correlation (90 %, bootstrap over clients): {', '.join(told)}"
    )


def pooled(measured: Measured) -> dict:
    """By signal, an `Interval`: what the policies recorded, and the losses of `fixed`, against the distance."""
    import numpy as np

    from ..analysis.heterogeneity import rank_correlation

    found = {}
    for name, policy, quantity in (
        ("loss (fixed)", REFERENCE, "loss"), ("loss (round-wise)", "round-wise", "signal"),
        ("update distance (model-diff)", "model-diff", "signal"),
    ):  # fmt: skip
        pairs = np.array(list(_clients(measured, policy, quantity))).reshape(-1, 2)
        found[name] = rank_correlation(pairs[:, 0], pairs[:, 1], BOOTSTRAP_KEY)
    return found


def _clients(measured: Measured, policy: str, quantity: str) -> Iterator[tuple[float, float]]:
    for one in measured.taken:
        if one.case.startswith(f"{policy},"):
            parts = dict.fromkeys(each.part for each in one.kept.readings if each.part)
            for part in parts:
                signal, distance = one.value(quantity, part), one.value("distance", part)
                if signal is not None and distance is not None:
                    yield signal, distance


def paired_panel(quality: str) -> Draw:
    """The differences to `fixed` over alpha, a line a policy."""

    def draw(measured: Measured) -> figure.Panel:
        lines = [
            _line(policy, [(alpha, difference(measured, policy, alpha, quality)) for alpha in _alphas(measured)])
            for policy in STRATEGIES[1:]
        ]
        return _panel(measured, f"{quality}, less that of {REFERENCE} (nats)", lines)

    return draw


def followed_panel(measured: Measured) -> figure.Panel:
    """How a round's rates go with the distance of labels, within a partition, over alpha."""
    lines = []
    for policy in STRATEGIES[1:]:
        found = [(a, measured.over_seeds(f"{policy}, alpha {a:g}", RECORDS.name, "rate and distance"))
                 for a in _alphas(measured)]  # fmt: skip
        lines.append(_line(policy, found))
    return _panel(measured, "rank correlation of rates with labels' distance", lines)


def _panel(measured: Measured, label: str, lines: list[figure.Line]) -> figure.Panel:
    ticks = [(alpha, f"{alpha:g}") for alpha in _alphas(measured)]
    return figure.Panel("Dirichlet's alpha: more alike to the right", label, lines, log_x=True, ticks=ticks)


def _line(policy: str, points: Sequence[tuple[float, Estimate | None]]) -> figure.Line:
    """A little beside the others, so that no bar hides another."""
    beside = BESIDE ** (STRATEGIES.index(policy) - len(STRATEGIES) / 2)
    known = [(x * beside, one) for x, one in points if one]
    columns = [[getattr(one, name) for _, one in known] for name in ("mean", "low", "high")]
    banded = all(one.half_width is not None for _, one in known)
    return figure.Line(policy, [x for x, _ in known], columns[0], *(columns[1:] if banded else ()))


def _case(policy: str, alpha: float) -> Case:
    over = {"personalise": {"policy": policy}, "partition": {"alpha": alpha}}
    return Case(f"{policy}, alpha {{x}}", over, series=policy, measures=(RECORDS,))


SIGNALS = Study(
    "heterogeneity-signals",
    "Which signal should set a client's learning rate, and does it see how unlike the clients are?",
    "asked for by FedMeZO's reviewers: the signals against heterogeneity that is known by construction",
    tuple(_case(policy, alpha) for alpha in ALPHAS for policy in STRATEGIES),
    finding,
    (paired_panel("final test loss"), paired_panel("unsteadiness"), followed_panel),
    base={
        "partition": {"kind": "dirichlet", "num_clients": 8},
        "federation": {"num_rounds": 12, "local_steps": 2},
        "personalise": {"alpha": 0.5, "alpha_unit": "relative"},
        "task": {"max_eval": 100},
        "run": {"eval_every": 4},
    },
    fixed={"partition": {"kind": "dirichlet"}},
    axis=Axis("partition.alpha", "alpha", "Dirichlet's alpha: clients are more alike to the right"),
)

STUDIES = (SIGNALS,)
