"""What the secure sums of a run are: how many clients, how many must stay, which numbers; or why there can be none.

Both sides read it from the recipe, so that no message can change it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

from ..config import Recipe
from ..errors import ConfigError, install_hint
from .fixed_point import FixedPoint

MOST_CLIENTS = 100
"""Of one sum: what each reveals and the server puts together grows with their square (docs/secure-sums.md)."""


@dataclass(frozen=True)
class SumPlan:
    """threshold: clients without which nothing is unmasked. code: of numbers, for as many clients as a cohort has."""

    threshold: int
    code: FixedPoint

    @classmethod
    def of(cls, recipe: Recipe) -> "SumPlan | None":
        """None where the recipe has no secure sums.

        Raises:
            ConfigError: a setting that cannot go with them, with the reason; or a library that is not installed.
        """
        if not recipe.secure_sum.enabled:
            return None
        for holds, setting, reason in _rules(recipe):
            if not holds:
                raise ConfigError(f"{setting} cannot be combined with secure_sum.enabled: {reason}")
        check_installed()
        return cls(threshold(recipe), FixedPoint(recipe.secure_sum.fraction_bits, _cohort(recipe)))


def quorum(recipe: Recipe) -> int:
    """Clients without which a round cannot go on: `min_replies`, and as many as a secure sum needs."""
    return max(recipe.federation.min_replies, threshold(recipe) if recipe.secure_sum.enabled else 0)


def check_installed() -> None:
    """
    Raises:
        ConfigError: the libraries of the extra `privacy` are not there.
    """
    if not (find_spec("cryptography") and find_spec("Crypto")):
        raise ConfigError(
            f"secure_sum.enabled: secure sums need cryptography and pycryptodome: {install_hint('privacy')}"
        )


def _cohort(recipe: Recipe) -> int:
    return recipe.federation.cohort_size or recipe.partition.num_clients


def threshold(recipe: Recipe) -> int:
    """Return t: the clients without which a secure sum of this recipe unmasks nothing."""
    return recipe.secure_sum.threshold or max(2, -(-2 * _cohort(recipe) // 3))


def _rules(recipe: Recipe) -> Iterator[tuple[bool, str, str]]:
    """Whether it holds, the setting that is wrong, and why with what to do."""
    federation, cohort, least = recipe.federation, _cohort(recipe), threshold(recipe)
    yield (
        2 <= cohort <= MOST_CLIENTS,
        f"a cohort of {cohort}",
        f"a sum has 2 to {MOST_CLIENTS} clients; set federation.cohort_size",
    )
    yield (
        cohort < 2 * least and least <= cohort,
        f"secure_sum.threshold = {least}",
        f"it must be more than half of the {cohort} clients asked, and no more than these",
    )
    yield (
        federation.upload == "weights" or federation.keys == "shared",
        "federation.keys = 'own' with federation.upload = 'scalars'",
        "scalars of different directions have no sum; use keys = 'shared', or upload = 'weights'",
    )
    yield (
        federation.aggregation in ("mean", "sign-vote"),
        f"federation.aggregation = {federation.aggregation!r}",
        "it needs each client's own scalars; use 'mean' or 'sign-vote'",
    )
    yield (
        recipe.personalise.policy == "fixed",
        f"personalise.policy = {recipe.personalise.policy!r}",
        "rates of clients' own follow from what each of them sends; use 'fixed'",
    )
    yield (
        recipe.privacy.unit == "none" or recipe.privacy.noise != "central",
        f"privacy.noise = {recipe.privacy.noise!r}",
        "a server that sees the sum alone is not to be trusted with its noise; use 'shares', or 'local'",
    )
