"""Runs, results and studies made up for tests: no model, no folder."""

import math
from pathlib import Path

from seedtune.recipe_text import build
from seedtune.studies.findings import trend
from seedtune.studies.measured import Measured, Result, Run
from seedtune.studies.study import Axis, Case, Study

COST = {"forwards": 10, "flops": 1000, "bytes_up": 50, "bytes_down": 20}

STUDY = Study(
    "steps", "Which H?", "nowhere",
    tuple(Case("H = {x}", times={"federation.local_steps": factor}) for factor in (1, 2)),
    trend("H"), axis=Axis("federation.local_steps", "H", "H"),
)  # fmt: skip


def run(*losses: float, seed: int = 0, rate: float = 0.1, cost: float = 1.0, surges: tuple[int, ...] = ()) -> Run:
    """A run evaluated every round, with these losses from before the first round on; not finite: it diverged."""
    recipe = build({
        "federation": {"num_rounds": len(losses) - 1}, "local": {"learning_rate": rate},
        "run": {"seed": seed, "eval_every": 1},
    })  # fmt: skip
    rows = [{"rounds": 0, "elapsed_seconds": 0.5, "loss": losses[0], "accuracy": 0.25, "perplexity": None}]
    rows += [
        {"rounds": i, "elapsed_seconds": 0.5 + i, "train_loss": loss, "loss": loss if math.isfinite(loss) else None,
         "accuracy": 0.5, "perplexity": None, **{name: value * cost for name, value in COST.items()},
         **({"surge": "rose"} if i in surges else {})}
        for i, loss in enumerate(losses[1:], 1)
    ]  # fmt: skip
    return Run(Path("out/runs"), recipe, tuple(rows), {"stopped_by": None})


def result(label: str, *finals: float, x: float | None = None, series: str = "", tried=(), cost: float = 1.0) -> Result:
    """A case whose runs, one a seed, end at these losses after two rounds."""
    runs = tuple(run(3.0, 2.5, loss, seed=seed, cost=cost) for seed, loss in enumerate(finals))
    return Result(label, series, x, runs, tuple(tried))


def measured(*results: Result) -> Measured:
    return Measured(STUDY, results, len(results[0].runs))
