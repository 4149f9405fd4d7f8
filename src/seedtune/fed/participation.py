"""Who is asked in a round and who stays silent: functions of a key, so that a resumed run asks the same clients."""

from ..config import Recipe
from ..data.keyed import keyed_permutation
from ..privacy.plan import Plan
from ..privacy.sampling import secret_cohort
from ..privacy.sum_plan import quorum
from ..zo import noise


def cohort_of(recipe: Recipe, round_: int, secret: bytes) -> tuple[int, ...]:
    """The clients asked in a round, sorted; drawn in secret where a private run counts on that."""
    plan = Plan.of(recipe)
    return secret_cohort(plan, secret, round_) if plan and plan.hides_cohort else sample_cohort(recipe, round_)


def asked_in(recipe: Recipe, round_: int, secret: bytes = b"") -> tuple[int, ...]:
    """Who gets an order in a round: the cohort but for those that stay silent; nobody where too few are there, and then
    nothing moves."""
    cohort = cohort_of(recipe, round_, secret)
    present = tuple(client for client in cohort if not drops_out(recipe, round_, client))
    return present if len(present) >= quorum(recipe) else ()


def sample_cohort(recipe: Recipe, round_: int) -> tuple[int, ...]:
    """The clients asked in a round, sorted; a function of seed and round alone."""
    num_clients, size = recipe.partition.num_clients, recipe.federation.cohort_size
    if size in (0, num_clients):
        return tuple(range(num_clients))
    key = noise.derive_key(recipe.run.seed, "cohort", round=round_)
    return tuple(sorted(keyed_permutation(key, num_clients)[:size].tolist()))


def drops_out(recipe: Recipe, round_: int, client: int) -> bool:
    """Whether a client of the cohort stays silent; a function of seed, round and client alone."""
    key = noise.derive_key(recipe.run.seed, "dropout", round=round_, client=client)
    return key / 2**64 < recipe.federation.dropout_rate
