"""One sentence of what a study found, computed from what was measured.

Each function here makes a `study.Finding`. A sentence says what the data say, be it the opposite of what a paper
reports; "within the band" where bands overlap; "one seed" where there is no band; and it names cases that diverged.
Losses are those on the test examples after the last round.
"""

from collections.abc import Sequence
from statistics import mean, median

from ..analysis.estimates import DIGITS, Estimate, estimate, verdict
from .measured import Measured, Result, common_loss
from .measuring import sure
from .study import Finding

UPLOADS = ("scalars", "weights")
THAN = {"lower": "lower than", "higher": "higher than", "equal": "equal to", "within the band": "within the band of"}


def trend(symbol: str) -> Finding:
    """How the final loss goes with the study's axis: falls, rises, neither, or not beyond the band."""

    def sentence(measured: Measured) -> str:
        return f"{seeds(measured)}, {trend_of(measured.results, symbol)}{_diverged(measured.results)}."

    return sentence


def trend_of(results: Sequence[Result], symbol: str) -> str:
    known = [result for result in results if result.loss]
    if not known:
        return f"no {symbol} can be judged"
    if len(known) == 1:
        return f"only {named(known[0])} can be judged"
    low, high = min(known, key=_mean), max(known, key=_mean)
    word = verdict(sure(low.loss), sure(high.loss))
    if word in ("within the band", "equal"):
        beyond = " beyond the band" if "band" in word else ""
        return f"{symbol} makes no difference{beyond}, from {named(low)} to {named(high)}"
    ordered = sorted(known, key=_place)
    means = [_mean(result) for result in ordered]
    if means == sorted(means, reverse=True):
        return f"the test loss falls as {symbol} grows, from {named(ordered[0])} to {named(ordered[-1])}"
    if means == sorted(means):
        return f"the test loss rises as {symbol} grows, from {named(ordered[0])} to {named(ordered[-1])}"
    return f"the test loss is lowest at {named(low)} and highest at {named(high)}"


def against(reference: str) -> Finding:
    """Each case against the one with the label `reference`."""

    def sentence(measured: Measured) -> str:
        base = measured[reference]
        others = [result for result in measured.results if result is not base and result.loss]
        if not base.loss or not others:
            return f"{seeds(measured)}, nothing can be said against {reference}{_diverged(measured.results)}."
        groups = _grouped(base.loss, others)
        told = "; ".join(f"{word}: {', '.join(map(named, group))}" for word, group in groups.items())
        return f"{seeds(measured)}, against {named(base)}, {told}{_diverged(measured.results)}."

    return sentence


def _grouped(base: Estimate, others: Sequence[Result]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = {}
    for word in ("lower", "within the band", "equal", "higher"):
        members = [result for result in others if verdict(sure(result.loss), base) == word]
        groups |= {word: sorted(members, key=_mean)} if members else {}
    return groups


def pairs(*labels: tuple[str, str]) -> Finding:
    """The two cases of each pair against each other, and, of the last pair, what both took to a common loss."""

    def sentence(measured: Measured) -> str:
        found = [(measured[one], measured[other]) for one, other in labels]
        parts = [_pair(one, other) for one, other in found]
        return f"{seeds(measured)}, {'; '.join(parts)}{_cost(*found[-1])}."

    return sentence


def _pair(one: Result, other: Result) -> str:
    if not one.loss or not other.loss:
        return f"{named(one)} cannot be compared with {named(other)}"
    return f"{named(one)} ends {THAN[verdict(one.loss, other.loss)]} {named(other)}"


def _cost(one: Result, other: Result) -> str:
    """FLOPs of both to the lowest loss that all their runs came to."""
    level = common_loss((one, other))
    if level is None:
        return ""
    mine, its = one.to_reach(level, "flops"), other.to_reach(level, "flops")
    if not (mine and mine.mean and its and its.mean):
        return ""
    factor = f"{mine.mean / its.mean:.2g} x the FLOPs"
    unsure = ", within the band" if verdict(mine, its) == "within the band" else ""
    return f"; to a test loss of {level:.3f}, which all their runs reach, {one.label} takes {factor}{unsure}"


def computation(label: str) -> Finding:
    """What one case takes of each other's FLOPs to the lowest test loss that all runs of both come to."""

    def sentence(measured: Measured) -> str:
        one, others = measured[label], [result for result in measured.results if result.label != label]
        told = ", ".join(f"{_times(_factor(one, other))} {named(other)}" for other in others)
        return f"{seeds(measured)}, to the lowest test loss that all runs of both reach, {named(one)} takes {told}."

    return sentence


def savings(reference: str) -> Finding:
    """What each case takes of the FLOPs of one to the lowest test loss that all runs of both come to."""

    def sentence(measured: Measured) -> str:
        base, others = measured[reference], [one for one in measured.results if one.label != reference]
        told = ", ".join(f"{named(one)} takes {_times(_factor(one, base))} it" for one in others)
        return f"{seeds(measured)}, beside {named(base)}, to the lowest test loss that all runs of both reach, {told}."

    return sentence


def _factor(one: Result, other: Result) -> tuple[Estimate, float] | None:
    """FLOPs of one as a multiple of the other's, and the loss to which they were spent. Seed by seed, since both have
    the same data: the mean of the ratios and its band. None where a run never came below its start."""
    level = max(run.lowest_loss for run in (*one.runs, *other.runs))
    spent = [[run.spent(level, "flops") for run in runs] for runs in zip(one.runs, other.runs, strict=True)]
    ratios = [own / others for own, others in spent if own and others]
    return (sure(estimate(ratios)), level) if len(ratios) == len(spent) else None


def _times(factor: tuple[Estimate, float] | None) -> str:
    return "an unknown share of" if factor is None else f"{amount(factor[0])} x the FLOPs (to {factor[1]:.3f}) of"


def named(result: Result) -> str:
    """A case with its final loss, and its rate where that was chosen out of a grid.

    "H = 30 (1.512 ± 0.031)"
    """
    rate = f" at rate {result.rate:g}{', an edge of its grid' if result.is_edge else ''}" if result.tried else ""
    return f"{result.label}{rate} ({amount(result.loss) if result.loss else 'diverged'})"


def amount(estimate: Estimate, digits: int = DIGITS) -> str:
    """
    >>> amount(Estimate(1.5, 0.25, 3)), amount(Estimate(1.5, None, 1), 1)
    ('1.500 ± 0.250', '1.5')
    """
    band = "" if estimate.half_width is None else f" ± {estimate.half_width:.{digits}f}"
    return f"{estimate.mean:.{digits}f}{band}"


def seeds(measured: Measured) -> str:
    return "On one seed" if measured.num_seeds == 1 else f"Over {measured.num_seeds} seeds"


def _diverged(results: Sequence[Result]) -> str:
    found = [f"{one.label} ({one.num_diverged} of {len(one.runs)})" for one in results if one.num_diverged]
    return f"; diverged: {', '.join(found)}" if found else ""


def _mean(result: Result) -> float:
    return sure(result.loss).mean


def _place(result: Result) -> float:
    return sure(result.x)


def surges(measured: Measured) -> str:
    """At which rates the training loss surged, in which round first, and whether earlier at larger rates."""
    surged = [result for result in measured.results if result.surge_rounds]
    calm = [result for result in measured.results if not result.surge_rounds]
    told = [f"surged at {', '.join(map(_surge, surged))}"] if surged else []
    told += [f"did not at {', '.join(map(_calm, calm))}"] if surged and calm else []
    told = told or [f"did not surge at {', '.join(map(_calm, calm))}"]
    return f"{seeds(measured)}, the training loss {' and '.join(told)}{_order(surged)}."


def _calm(result: Result) -> str:
    """A case without a surge, and whether it ended above where it began all the same."""
    start = estimate([run.rows[0]["loss"] for run in result.runs])
    if result.loss and start and verdict(result.loss, start) == "higher":
        return f"{result.label} (yet it ended at {amount(result.loss)}, above its start)"
    return result.label


def _surge(result: Result) -> str:
    rounds = result.surge_rounds
    often = f"{len(rounds)} of {len(result.runs)} runs, " if len(result.runs) > 1 else ""
    return f"{result.label} ({often}first in round {median(rounds):g})"


def _order(surged: Sequence[Result]) -> str:
    """Whether larger rates surge earlier, by the median round of each."""
    rounds = [median(result.surge_rounds) for result in sorted(surged, key=_place)]
    if len(rounds) < 2:
        return ""
    if rounds == sorted(rounds, reverse=True) and rounds[0] > rounds[-1]:
        return "; earlier the larger the rate"
    return "; not earlier at larger rates" if rounds[-1] >= rounds[0] else "; not always earlier at larger rates"


def ranks(measured: Measured) -> str:
    """The trend of quality with the rank, and the bytes sent up as scalars and as weights."""
    by_upload = {upload: [one for one in measured.results if one.series.startswith(upload)] for upload in UPLOADS}
    quality = trend_of(by_upload["scalars"], "the rank")
    sent = "; ".join(f"a run sends up {_sent(results)} as {upload}" for upload, results in by_upload.items())
    return f"{seeds(measured)}, {quality}; {sent}{_diverged(measured.results)}."


def _sent(results: Sequence[Result]) -> str:
    """The bytes of the lowest and of the highest rank."""
    low, high = (sure(result.total("bytes_up")) for result in (results[0], results[-1]))
    if low.mean == high.mean:
        return f"{low.mean:,.0f} bytes whatever the rank"
    return f"{low.mean:,.0f} ({results[0].label}) to {high.mean:,.0f} bytes ({results[-1].label})"


def auto_against_best(within: float = 0.05) -> Finding:
    """Each case "X, auto" against "X, best fixed": by which share of the other's way from the start it falls short."""

    def sentence(measured: Measured) -> str:
        by_label = {result.label: result for result in measured.results}
        names = [label.removesuffix(", auto") for label in by_label if label.endswith(", auto")]
        shares = {
            name: _shortfall(by_label[f"{name}, auto"], by_label[f"{name}, best fixed"])
            for name in names
            if f"{name}, best fixed" in by_label
        }
        if not shares:
            return f"{seeds(measured)}, no measured rate has a grid to be set against{_diverged(measured.results)}."
        num_near = sum(share is not None and share <= within for share in shares.values())
        told = (f"{name}: " + ("not known" if share is None else f"{share:+.1%}") for name, share in shares.items())
        return (
            f"{seeds(measured)}, a measured rate comes within {within:.0%} of the best fixed one's way in {num_near} "
            f"of {len(shares)} cases; it falls short by {'; '.join(told)}{_diverged(measured.results)}."
        )

    return sentence


def _shortfall(result: Result, best: Result) -> float | None:
    """The share of the best's way, from its first loss to its last, that a result's last loss lacks; None where one of
    them diverged, or the best went nowhere."""
    if not result.loss or not best.loss:
        return None
    way = mean(run.rows[0]["loss"] for run in best.runs) - best.loss.mean
    return (result.loss.mean - best.loss.mean) / way if way > 0 else None
