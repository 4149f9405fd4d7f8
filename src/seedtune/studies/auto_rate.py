"""Whether a rate that a run measures itself comes as far as one that was looked for.

Four ways of tuning a model, each with seven fixed rates half a decade apart and with `learning_rate = "auto"`, for as
many rounds. Where the grids stand came from trials; what `auto` begins with comes from its own measurements, those of
its ratio between two blocks included. With fixed rates block 2's is 8 times block 1's.
"""

from typing import Any

from ..recipe_text import merged
from . import findings
from .study import Case, Study, View

GRID = tuple(float(f"{10 ** (exponent / 2):.3g}") for exponent in range(-3, 4))
"""From a thirtieth to thirty times the rate in the middle."""

TUNED: dict[str, tuple[Any, ...]] = {
    "all": ({"model": {"adapter": "none", "trainable": ()}}, 1e-3, 2e-4),
    "LoRA": ({"model": {"adapter": "lora", "trainable": ()}}, 2e-2, 5e-3),
}
"""What is tuned, and the middle of the grid for two-point and for split estimates."""
ESTIMATORS: dict[str, dict[str, Any]] = {
    "two-point": {"local": {"estimator": "two-point", "num_directions": 8}},
    "split": {"local": {"estimator": "split"}},
}


def _cases(tuned: str, estimator: str) -> tuple[Case, Case]:
    what, *middles = TUNED[tuned]
    over: dict[str, Any] = merged(what, ESTIMATORS[estimator])
    middle = middles[list(ESTIMATORS).index(estimator)]
    label = f"{tuned}, {estimator}"
    return (
        Case(f"{label}, best fixed", merged(over, {"local": {"learning_rate": middle}}), rates=GRID),
        Case(f"{label}, auto", merged(over, {"local": {"learning_rate": "auto"}})),
    )


AUTO_RATE = Study(
    "auto-rate",
    "Does a measured learning rate come as far as the best of a grid?",
    "what users of zeroth-order methods ask for: no rate to guess; the derivation is in docs/auto.md",
    tuple(case for tuned in TUNED for estimator in ESTIMATORS for case in _cases(tuned, estimator)),
    findings.auto_against_best(),
    (View("rounds"), View("cases")),
    base={
        "federation": {"keys": "shared", "num_rounds": 40, "local_steps": 1},
        "local": {"perturbation_scale": 1e-3},
        "split": {
            "num_suffix_directions": 8, "difference": "one-sided", "baseline": "leave-one-out", "rate_ratio": 8.0,
        },
        "run": {"eval_every": 10, "on_surge": "stop"},
    },
    num_seeds=1,
)  # fmt: skip

STUDIES = (AUTO_RATE,)
