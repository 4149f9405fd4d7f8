"""What a private run says of itself: the ledger of what was spent, and rows without what was not accounted for.

Withheld are values that follow from data past the noise, and, where the cohort is a secret, those that tell its size or
its clients, times included. What is left may be published: it follows from public settings and from released values.
Times of a public cohort are the exception: how long a round took depends a little on the length of its texts, and no
accounting covers that.
"""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from .accounting import epsilon, event
from .plan import Plan

_FROM_DATA = ("train_loss", "flops", "flops_prefix", "flops_suffix", "skipped_steps")
_FROM_COHORT = (
    "replied", "cohort", "bytes_up", "bytes_down", "bytes_finish", "forwards", "seconds", "elapsed_seconds",
    "round_seconds",
)  # fmt: skip
WITHHELD = "withheld"
"""In place of a reason that may follow from a client's data."""


def published(plan: Plan, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a finished round as a private run keeps it."""
    failed = withheld_failures(plan, row["failed"])
    dropped = [] if plan.hides_cohort else row["dropped"]
    kept = {name: None if name in _FROM_DATA else value for name, value in without_cohort(plan, row).items()}
    spent = epsilon(plan, row["rounds"])
    return kept | {"losses": {}, "signals": {}, "failed": failed, "dropped": dropped, "epsilon": spent}


def withheld_failures(plan: Plan | None, failed: Mapping[Any, str]) -> dict[Any, str]:
    """Failed clients without the reasons, in a private run; none where who was asked is a secret."""
    if plan is None:
        return dict(failed)
    return {} if plan.hides_cohort else dict.fromkeys(failed, WITHHELD)


def without_cohort(plan: Plan | None, values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what tells how many clients took part, where that is a secret."""
    is_secret = plan is not None and plan.hides_cohort
    return {name: None if is_secret and name in _FROM_COHORT else value for name, value in values.items()}


def ledger(plan: Plan, num_rounds: int) -> dict[str, Any]:
    """What so many rounds are worth, and by which event each; plain data."""
    return {
        "epsilon": epsilon(plan, num_rounds), "delta": plan.delta, "unit": plan.unit, "neighbours": plan.neighbours,
        "noise": plan.noise, "num_sharing": plan.num_sharing if plan.noise == "shares" else None,
        "clip": plan.clip, "noise_multiplier": plan.noise_multiplier, "events": num_rounds,
        "event": str(event(plan)), "target_epsilon": plan.target_epsilon or None,
        "accountant": f"RdpAccountant of dp-accounting {version('dp-accounting')}",
    }  # fmt: skip
