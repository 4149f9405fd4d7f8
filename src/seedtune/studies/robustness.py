"""What clients that lie do to a run, and which rule of aggregation withstands them.

Ten clients measure the same directions, so their scalars can be set against one another. A liar sends its scalars
times -10: louder than the others, and the wrong way. Two of ten are fewer than a trimmed mean cuts off at an end, four
are more; median and vote have a majority against them in both cases.
"""

from . import findings
from .study import Axis, Case, Study, View

RULES = ("mean", "trimmed-mean", "median", "sign-vote")
GRID = (1 / 3, 1.0, 3.0)
VOTE_RATE = {"local.learning_rate": 0.15}
"""A vote is 1 where a scalar is about 0.15 in size (root mean square 0.19 in a run of the mean)."""


def _case(rule: str, num_liars: int) -> Case:
    over = {"federation": {"aggregation": rule}, "byzantine": {"num_clients": num_liars}}
    label = f"{rule}, {{x}} of 10 lie" if num_liars else f"{rule}, none lies"
    return Case(label, over, VOTE_RATE if rule == "sign-vote" else {}, GRID, series=rule)


LYING_CLIENTS = Study(
    "lying-clients",
    "Which rule of aggregation withstands clients that lie?",
    "coordinate-wise median and trimmed mean of Yin et al. (ICML 2018), votes as in FeedSign; the attack is ours",
    tuple(_case(rule, num_liars) for rule in RULES for num_liars in (0, 2, 4)),
    findings.against("mean, none lies"),
    (View("axis"), View("rounds")),
    base={
        "partition": {"num_clients": 10},
        "federation": {"keys": "shared", "weighting": "equal", "num_rounds": 60, "local_steps": 1},
        "local": {"num_directions": 4, "learning_rate": 1.0},
        "run": {"eval_every": 10},
    },
    fixed={
        "partition": {"kind": "iid", "num_clients": 10},
        "federation": {"cohort_size": 0},
        "byzantine": {"attack": "scale", "factor": -10.0},
    },
    axis=Axis("byzantine.num_clients", "the liars", "clients of ten that lie", log=False),
)

STUDIES = (LYING_CLIENTS,)
