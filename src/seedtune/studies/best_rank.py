"""Does LoRA's best rank follow the effective rank of the loss, as FedMeZO's conjecture 3.8 says?

Over subjects: the recipe's own model and task, and those that the user names with `--also`, since one alone tells
nothing of how two numbers go together. What is set against the best rank is the Hessian's of all tensors at the start:
an adapter's own follows the rank that one chose.
"""

from collections.abc import Iterator, Mapping, Sequence

from ..analysis.estimates import Estimate, estimate
from ..report import figure
from .findings import amount, seeds
from .measured import Measured, Result
from .measuring import sure
from .study import Axis, Case, Measure, Study

RANKS = (1, 4, 16, 64)
FIRST_RATE = 1.5e-3
"""Of rank 8 on the starter. The largest stable rate falls with the number of tuned parameters: each rank's grid is laid
around a rate that falls with the rank's square root, and goes on where the best lies at an edge."""
ALL = "all tensors"
BESIDE, LEAST_SUBJECTS = 1.1, 3
"""Of a figure's bars, as a factor; and for a correlation between subjects."""


def hessian(subject: str, measured: Measured, quantity: str = "stable rank") -> Estimate | None:
    """Of the whole Hessian at the start, over seeds."""
    return measured.over_seeds(f"{subject}, {ALL}", "start", quantity, "whole")


def by_subject(measured: Measured) -> dict[str, list[Result]]:
    """The results of scalars, in the order of their ranks."""
    found: dict[str, list[Result]] = {}
    for result in measured.results:
        if result.series == "scalars" and result.loss:
            found.setdefault(result.subject, []).append(result)
    return found


def best_of(results: Sequence[Result]) -> Result:
    return min(results, key=lambda one: sure(one.loss).mean)


def above(one: Result, best: Result) -> Estimate:
    """By how much a case's loss lies above another's, seed by seed: both have the same data and partition."""
    return sure(estimate([mine.loss - its.loss for mine, its in zip(one.runs, best.runs, strict=True)]))


def as_good(results: Sequence[Result]) -> list[Result]:
    """The ranks whose difference to the best is not beyond its band; on one seed the best alone."""
    best = best_of(results)
    return [one for one in results if one is best or (len(one.runs) > 1 and above(one, best).low <= 0)]


def finding(measured: Measured) -> str:
    """Best rank and stable rank of each subject, how they go together, and what each rank sends."""
    subjects = by_subject(measured)
    told = "; ".join(_told(subject, results, measured) for subject, results in subjects.items())
    return f"{seeds(measured)}, {told}; {_together(subjects, measured)}; {_sent(measured)}."


def _told(subject: str, results: Sequence[Result], measured: Measured) -> str:
    best, rank = best_of(results), hessian(subject, measured)
    others = [f"{one.x:g}" for one in as_good(results) if one is not best]
    unsure = f", not told apart from {', '.join(others)}" if others else ""
    edge = ", the largest or smallest tried" if best in (results[0], results[-1]) else ""
    return (
        f"{subject}: stable rank {amount(rank, 1) if rank else 'unknown'} of the whole Hessian, best LoRA rank "
        f"{best.x:g}{edge} (test loss {amount(sure(best.loss))}{unsure})"
    )


def _together(subjects: Mapping[str, Sequence[Result]], measured: Measured) -> str:
    rho = correlation(subjects, measured)
    if rho is None:
        return f"fewer than {LEAST_SUBJECTS} subjects tell nothing of how the two go together"
    return f"Spearman's correlation of the two over {len(subjects)} subjects, seed by seed, is {amount(rho, 2)}"


def correlation(subjects: Mapping[str, Sequence[Result]], measured: Measured) -> Estimate | None:
    """Of each seed's stable ranks with that seed's best ranks, over subjects; the mean over seeds. None with too few
    subjects, or where all of a seed's are equal."""
    if len(subjects) < LEAST_SUBJECTS:
        return None
    import numpy as np

    from ..analysis.heterogeneity import spearman

    found = []
    for place in range(measured.num_seeds):
        best = [min(results, key=lambda one: one.runs[place].loss).x for results in subjects.values()]
        ranks = [_of_seed(subject, measured, place) for subject in subjects]
        found.append(spearman(np.array(best), np.array(ranks)))
    return estimate(found)


def _of_seed(subject: str, measured: Measured, place: int) -> float:
    own = [one for one in measured.taken if one.case == f"{subject}, {ALL}"]
    return own[place].value("stable rank", "whole") or float("nan")


def _sent(measured: Measured) -> str:
    """Bytes a client sends in a round, by the first subject."""
    first = measured.results[0].subject
    own = [one for one in measured.results if one.subject == first]
    scalars = [_bytes(one) for one in own if one.series == "scalars"]
    weights = [(one.x, _bytes(one)) for one in own if one.series == "weights"]
    told = " and ".join(f"{sent:,.0f} bytes at rank {rank:g}" for rank, sent in weights)
    return f"a client of {first} sends {max(scalars):,.0f} bytes a round as scalars at any rank; as weights, {told}"


def _bytes(result: Result) -> float:
    run = result.runs[0]
    return run.total("bytes_up") / run.rounds / run.recipe.partition.num_clients


def losses_panel(measured: Measured) -> figure.Panel:
    """Each rank's loss above that of the subject's best, seed by seed; subjects side by side, so that no bar hides
    another."""
    lines = []
    for place, (subject, results) in enumerate(by_subject(measured).items()):
        found = [above(one, best_of(results)) for one in results]
        columns = [[getattr(one, name) for one in found] for name in ("mean", "low", "high")]
        banded = found[0].half_width is not None
        lines.append(
            figure.Line(
                subject, [sure(one.x) * BESIDE**place for one in results], columns[0], *(columns[1:] if banded else ())
            )
        )
    ticks = [(rank, str(rank)) for rank in RANKS]
    return figure.Panel("LoRA rank (alpha is twice the rank)", "test loss above the best rank's (nats)", lines,
                        log_x=True, ticks=ticks)  # fmt: skip


def ranks_panel(measured: Measured) -> figure.Panel:
    """The best rank of each subject over its stable rank; a bar spans the ranks that are as good."""
    lines = list(_points(measured))
    ticks = [(line.x[0], f"{line.x[0]:.1f}") for line in lines]
    return figure.Panel("stable rank of the whole Hessian, at the start", "best LoRA rank (bars: as good)", lines,
                        log_y=bool(lines), ticks=ticks, joined=False)  # fmt: skip


def _points(measured: Measured) -> Iterator[figure.Line]:
    for subject, results in by_subject(measured).items():
        if rank := hessian(subject, measured):
            good = [sure(one.x) for one in as_good(results)]
            yield figure.Line(subject, [rank.mean], [sure(best_of(results).x)], [min(good)], [max(good)])


def _case(rank: int) -> Case:
    over = {"model": {"lora_rank": rank, "lora_alpha": 2.0 * rank}}
    times = {"local.learning_rate": (8 / rank) ** 0.5}
    return Case("rank {x}", over, times, (1 / 3, 1.0, 3.0), series="scalars", most_rates=5)


def _as_weights(rank: int) -> Case:
    """One round is enough: every round has as many bytes."""
    over = {
        "model": {"lora_rank": rank, "lora_alpha": 2.0 * rank},
        "federation": {"upload": "weights", "num_rounds": 1},
    }
    return Case("rank {x}, weights, one round", over, series="weights", most_seeds=1)


LORA = {"model": {"adapter": "lora", "trainable": ()}}
OF_ALL = {"model": {"adapter": "none", "trainable": ()}}

BEST_RANK = Study(
    "lora-rank-vs-effective-rank",
    "Does the best LoRA rank grow with the effective rank of the loss?",
    "FedMeZO, conjecture 3.8: the best rank is proportional to, and bounded below by, the effective rank",
    (
        Case(ALL, OF_ALL, trained=False,
             measures=(Measure("start", "block-ranks", options={"starts": 2, "steps": 16, "block_steps": 0}),)),
        *(_case(rank) for rank in RANKS),
        *(_as_weights(rank) for rank in (RANKS[0], RANKS[-1])),
    ),
    finding,
    (losses_panel, ranks_panel),
    base={
        **LORA,
        "task": {"max_eval": 100},
        "federation": {"num_rounds": 10, "local_steps": 4},
        "local": {"learning_rate": FIRST_RATE, "perturbation_scale": 1e-3},
        "run": {"eval_every": 10},
    },
    fixed=LORA,
    axis=Axis("model.lora_rank", "rank", "LoRA rank (alpha is twice the rank)"),
    over_subjects=True,
)  # fmt: skip

STUDIES = (BEST_RANK,)
