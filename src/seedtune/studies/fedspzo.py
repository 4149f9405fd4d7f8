"""The studies of FedSPZO (Ahmed et al., arXiv 2502.10239) and of the family that it stands in.

What a study keeps fixed are the clients' data, the tuned tensors and the floating-point operations, which are counted
from the model that runs: every case spends what the first one does, as nearly as whole rounds allow. Every case looks
for its own learning rate. On the starter all parameters are tuned; on another model a LoRA adapter, unless the user
says otherwise. How the paper's own comparison was set is not known to us, so nothing here repeats its numbers.

"FedSPZO, as set" is the split estimator with the recipe's section [split], which the user can set for a model.
"""

from collections.abc import Mapping
from typing import Any

from ..recipe_text import merged
from . import findings
from .study import Axis, Case, Study, View

GRID: Mapping[str, Any] = {"rates": (0.5, 1.0, 2.0), "most_rates": 5}
"""Factors of two around a case's own learning rate, going on where the best lies at an edge."""

BASE: Mapping[str, Any] = {
    "model": {"trainable": ()},
    "federation": {"num_rounds": 10, "local_steps": 5},
    "local": {"perturbation_scale": 1e-3, "learning_rate": 5e-4},
    "split": {
        "num_suffix_directions": 8, "difference": "one-sided", "baseline": "leave-one-out", "rate_ratio": 64.0,
    },
    "run": {"eval_every": 1, "on_surge": "stop"},
}  # fmt: skip
"""The reference takes eight forwards a step, so ten rounds of it are 1,600 forwards.
A run whose training loss surges ends there: at a rate that is too large nothing comes after."""

RATE = "local.learning_rate"


def two_point(directions: int, estimator: str = "two-point") -> dict[str, Any]:
    return {"local": {"estimator": estimator, "num_directions": directions}}


def split(**values: Any) -> dict[str, Any]:
    """The split estimator with the base's section [split] but for `values`."""
    return {"local": {"estimator": "split"}, "split": values}


def local(**values: Any) -> dict[str, Any]:
    return {"local": values}


WHOLE, AS_SET = "two-point, P = 4", "FedSPZO, as set"
REFERENCE = Case(WHOLE, two_point(4), **GRID)
SMALL_STEP = {RATE: 3 / 16}
"""Where the grid starts for what has one direction a step for block 1, or a rate of its own for block 2."""

LEVERS = Study(
    "split-levers",
    "Which parts of the split estimator save computation?",
    "what FedSPZO's claim, up to three times less computation than other zeroth-order methods, may rest on",
    (
        REFERENCE,
        Case("one-sided, P = 4", two_point(4, "one-sided"), **GRID),
        Case(AS_SET, split(), times=SMALL_STEP, **GRID),
        Case("central", split(difference="central"), times=SMALL_STEP, **GRID),
        Case("no baseline", split(baseline="none"), times=SMALL_STEP, **GRID),
        Case("one rate for both blocks", split(rate_ratio=1.0), times=SMALL_STEP, **GRID),
        Case("P2 = 4", split(num_suffix_directions=4), times=SMALL_STEP, **GRID),
        Case("P2 = 16", split(num_suffix_directions=16), times=SMALL_STEP, **GRID),
        Case("clean prefix", split(reading="clean-prefix", baseline="none"), times=SMALL_STEP, **GRID),
        Case("Gaussian", split() | local(estimator="split", distribution="gaussian"), times=SMALL_STEP, **GRID),
    ),
    findings.savings(WHOLE),
    (View("flops"), View("cases")),
    base=BASE,
    budget="flops",
    judged_by="best",
)

CUTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 28)
PLACEMENT = Study(
    "split-placement",
    "Where should the model be cut?",
    "FedSPZO's appendix on split placement, whose values are not known to us",
    (
        REFERENCE,
        *(Case("cut before layer {x}", split(cut=k), times=SMALL_STEP, series="split", **GRID) for k in CUTS),
    ),
    findings.savings(WHOLE),
    (View("flops"), View("axis")),
    base=BASE,
    axis=Axis("split.cut", "the cut", "layers before the cut", log=False),
    budget="flops",
    judged_by="best",
)


def _budget(prefix: int, suffix: int) -> Case:
    baseline = "leave-one-out" if suffix > 1 else "none"
    over = split(num_prefix_directions=prefix, num_suffix_directions=suffix, baseline=baseline)
    return Case(f"P1 = {prefix}, P2 = {suffix}", over, times=SMALL_STEP, **GRID)


BUDGET = Study(
    "perturbation-budget",
    "How should directions be shared out between the blocks?",
    "FedSPZO: more perturbations for block 2; how many is not known to us",
    (REFERENCE, *(_budget(*counts) for counts in ((1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (2, 4), (4, 1), (4, 4)))),
    findings.savings(WHOLE),
    (View("flops"), View("cases")),
    base=BASE,
    budget="flops",
    judged_by="best",
)


CENTRAL = {"split": {"difference": "central", "num_suffix_directions": 4, "rate_ratio": 1.0}}


def _method(name: str, label: str, times: float = 1.0, **federation: Any) -> Case:
    over = {"federation": federation} if federation else {}
    return Case(label, over, {RATE: times}, method=name, **GRID)


FAMILY = Study(
    "zo-family",
    "Which seed-and-scalar method learns most from as many operations?",
    "FedSPZO's claim, its neighbours under one roof; FedMeZO and FedKSeed with fewer local steps than their own",
    (
        REFERENCE,
        Case(AS_SET, split(), times=SMALL_STEP, **GRID),
        Case("FedSPZO, central, P2 = 4", CENTRAL, {RATE: 0.5}, method="fedspzo", **GRID),
        Case("two-point, P = 8", two_point(8), **GRID),
        _method("decomfl", "DeComFL, P = 5", 0.5),
        _method("fedmezo-full", "FedMeZO, H = 10", 0.5, local_steps=10),
        _method("fedkseed", "FedKSeed, H = 10", 0.5, local_steps=10),
        Case("FedZO, P = 4", local(num_directions=4), {RATE: 1.0}, method="fedzo", **GRID),
        _method("baffle", "BAFFLE, P = 100", 4.0),
        _method("feedsign", "FeedSign", 0.5),
        _method("fedavg", "FedAvg, backpropagation", 16.0),
    ),
    findings.computation(AS_SET),
    (View("flops"), View("cases")),
    base=BASE,
    budget="flops",
    judged_by="best",
)

ADAMW = {"order": "first", "optimizer": "adamw"}
VERSUS_ADAMW = Study(
    "zo-vs-adamw",
    "How far behind AdamW are forward passes alone, at as many operations?",
    "FedSPZO's appendix on first-order AdamW; a client's optimizer begins anew each round",
    (
        REFERENCE,
        Case(AS_SET, split(), times=SMALL_STEP, **GRID),
        Case("SGD, backpropagation", times={RATE: 16.0}, method="fedavg", **GRID),
        Case("AdamW, backpropagation", local(**ADAMW), {RATE: 2.0}, method="fedavg", **GRID),
    ),
    findings.savings(AS_SET),
    (View("flops"), View("rounds")),
    base=BASE,
    budget="flops",
    judged_by="best",
)

QLORA = Study(
    "qlora",
    "What does a quantised base cost in quality?",
    "FedSPZO's appendix on QLoRA: the adapter is float32 in all cases, the rate one, mu large enough for bfloat16",
    (
        Case("float32 base"),
        Case("bfloat16 base", {"model": {"dtype": "bfloat16"}}),
        Case("8-bit base", {"model": {"quantisation": "8bit"}}),
        Case("4-bit base", {"model": {"quantisation": "4bit"}}),
    ),
    findings.against("bfloat16 base"),
    (View("rounds"), View("cases")),
    base=merged(merged(BASE, two_point(4)), local(perturbation_scale=1e-2, learning_rate=3e-3)),
    fixed={"model": {"adapter": "lora", "trainable": ()}},
)

STUDIES = (LEVERS, PLACEMENT, BUDGET, FAMILY, VERSUS_ADAMW, QLORA)
