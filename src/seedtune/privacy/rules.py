"""What a private run may not be combined with: whatever would tell of the data past what is accounted.

A rule is a setting, whether it is allowed, and the reason. There is no way around one: a combination is accounted for,
or it is refused before anything is loaded.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from math import log2

from ..config import Recipe
from ..errors import ConfigError
from .accounting import calibrated, num_rounds_within
from .noise import MOST_DEVIATIONS
from .plan import LEAST_NOISE, Plan
from .sum_plan import MOST_CLIENTS, threshold

MOST_SUMMED = 1024
"""Examples of a batch whose contributions add up exactly in float32, also where twice as many are drawn."""

_Rule = tuple[bool, str, str]
"""Whether it holds, the setting that is wrong, and why with what to do."""


def checked(recipe: Recipe) -> Plan | None:
    """The plan of a recipe, None where it has no privacy.

    Raises:
        ConfigError: a setting that could not be accounted for, with the reason.
    """
    plan = Plan.of(recipe)
    if plan is None:
        return None
    rules = (_what_leaves(recipe), _what_is_decided(recipe), _noise(plan), _shares(recipe, plan), _sampling(recipe))
    for holds, setting, reason in chain(*rules):
        if not holds:
            raise ConfigError(f"{setting} cannot be combined with privacy.unit = {plan.unit!r}: {reason}")
    return plan


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with the noise multiplier that its target epsilon needs, where none is given.

    Raises:
        ConfigError: as `checked`; or a target that not even one round stays within.
    """
    plan = checked(recipe)
    if plan is None:
        return recipe
    if not plan.noise_multiplier:
        plan = replace(plan, noise_multiplier=calibrated(plan))
        privacy = recipe.privacy.model_copy(update={"noise_multiplier": plan.noise_multiplier})
        recipe = recipe.model_copy(update={"privacy": privacy})
    if plan.num_rounds and not num_rounds_within(plan):
        raise ConfigError(
            f"privacy.target_epsilon = {plan.target_epsilon:g} is less than one round is worth with "
            f"privacy.noise_multiplier = {plan.noise_multiplier:g}: give more noise, or leave it to the target"
        )
    return recipe


def _what_leaves(recipe: Recipe) -> Iterator[_Rule]:
    """Nothing leaves a device but one bounded vector."""
    federation, is_summed = recipe.federation, recipe.privacy.noise != "local"
    yield federation.upload == "scalars", "federation.upload = 'weights'", "what is clipped are scalars; use 'scalars'"
    yield (
        federation.aggregation == "mean" or (not is_summed and federation.aggregation != "sign-vote"),
        f"federation.aggregation = {federation.aggregation!r}",
        "what one client can do to it is not bounded by privacy.clip; use 'mean'",
    )
    yield (
        federation.weighting == "equal",
        "federation.weighting = 'examples'",
        "how many examples a client has is not noised, and would multiply its contribution; use 'equal'",
    )
    yield (
        federation.keys == "shared" or not is_summed,
        f"federation.keys = 'own' with privacy.noise = {recipe.privacy.noise!r}",
        "each client's scalars would be published by themselves and not as a sum; use keys = 'shared', or local noise",
    )
    yield (
        not recipe.local.clip,
        f"local.clip = {recipe.local.clip:g}",
        "noise goes beyond it, and privacy.clip bounds what counts; set it to 0",
    )
    yield (
        not recipe.byzantine.num_clients,
        f"byzantine.num_clients = {recipe.byzantine.num_clients}",
        "what liars send in a study is not bounded by privacy.clip; set it to 0",
    )
    if recipe.privacy.unit == "example":
        yield (
            federation.local_steps == 1,
            f"federation.local_steps = {federation.local_steps}",
            "one example moves the weights at which all others are measured in the next step; set it to 1",
        )
        yield (
            recipe.model.dtype == "float32",
            f"model.dtype = {recipe.model.dtype!r}",
            "in 16 bits an example's loss follows the shape of its batch, and one example moved those of others by up "
            "to 1.4 times the clip; use 'float32'",
        )
        yield (
            federation.batch_size <= MOST_SUMMED,
            f"federation.batch_size = {federation.batch_size}",
            f"sums of more than {MOST_SUMMED} examples are not exact in the 4 bytes of a scalar; make it smaller",
        )
        yield (
            recipe.model.quantisation != "8bit",
            "model.quantisation = '8bit'",
            "which columns of a product are outliers is decided over a whole batch, so an example's loss would follow "
            "from the others too; use '4bit' or 'none'",
        )
        yield (
            recipe.local.estimator != "split",
            "local.estimator = 'split'",
            "losses of single examples are not measured behind a cut; use 'two-point' or 'one-sided'",
        )


def _what_is_decided(recipe: Recipe) -> Iterator[_Rule]:
    """Nothing is decided, measured or published from private data past the noise."""
    policy, partition = recipe.personalise.policy, recipe.partition
    yield (
        policy == "fixed",
        f"personalise.policy = {policy!r}",
        "rates of clients' own multiply contributions, or follow from losses that stay on the device; use 'fixed'",
    )
    yield (
        recipe.run.on_surge == "ignore",
        f"run.on_surge = {recipe.run.on_surge!r}",
        "a surge is seen in training losses, which stay on the device; use 'ignore'",
    )
    yield (
        not partition.heldout_fraction,
        f"partition.heldout_fraction = {partition.heldout_fraction:g}",
        "losses on clients' own held-out examples would be published without noise; set it to 0",
    )
    yield (
        not recipe.baseline.num_steps,
        f"baseline.num_steps = {recipe.baseline.num_steps}",
        "the comparison trains on everybody's examples without noise; set it to 0",
    )
    yield (
        recipe.model.head != "probe",
        "model.head = 'probe'",
        "the head would be fitted on training examples without noise; use 'labels' or 'fresh'",
    )


def _noise(plan: Plan) -> Iterator[_Rule]:
    given = plan.noise_multiplier
    yield (
        bool(given or plan.target_epsilon),
        "privacy.noise_multiplier = 0 without privacy.target_epsilon",
        "without noise nothing is private; set one of the two",
    )
    yield (
        not given or given >= LEAST_NOISE,
        f"privacy.noise_multiplier = {given:g}",
        f"less than {LEAST_NOISE:g} protects nothing",
    )
    yield (
        bool(given or plan.num_rounds),
        "federation.num_rounds = 0 with privacy.target_epsilon",
        "the noise follows from the number of rounds",
    )


def _shares(recipe: Recipe, plan: Plan) -> Iterator[_Rule]:
    """Shares of the noise are added under a secure sum, whole, by as many clients as it surely has."""
    if plan.noise != "shares":
        if recipe.privacy.min_honest:
            yield False, f"privacy.min_honest = {recipe.privacy.min_honest}", "it needs privacy.noise = 'shares'"
        return
    setting, least = "privacy.noise = 'shares'", threshold(recipe)
    yield recipe.secure_sum.enabled, setting, "shares hide a sum, not one client's part; set secure_sum.enabled"
    yield (
        plan.num_sharing <= least,
        f"privacy.min_honest = {plan.num_sharing}",
        f"a sum may be of {least} clients (secure_sum.threshold); set it to no more than these",
    )
    bits = recipe.secure_sum.fraction_bits
    yield (
        2.0**-bits <= plan.share_step,
        f"secure_sum.fraction_bits = {bits}",
        f"shares of the noise are multiples of {plan.share_step:g}; use {-int(log2(plan.share_step))} or more",
    )
    most, limit = plan.clip + MOST_DEVIATIONS * plan.share_deviation, 2.0 ** (62 - bits) / MOST_CLIENTS
    yield (
        most * recipe.federation.batch_size <= limit if plan.unit == "example" else most <= limit,
        f"secure_sum.fraction_bits = {bits}",
        f"what a client adds may be as large as {most:.3g}, and that must never fail to fit; use fewer",
    )


def _sampling(recipe: Recipe) -> Iterator[_Rule]:
    """What is drawn is drawn as accounted, and nothing tells what was drawn."""
    privacy, federation, partition = recipe.privacy, recipe.federation, recipe.partition
    if privacy.sampling == "none":
        return
    setting = f"privacy.sampling = {privacy.sampling!r}"
    if privacy.unit == "example":
        yield (
            partition.min_examples > federation.batch_size,
            f"{setting} with partition.min_examples = {partition.min_examples}",
            f"of so few examples a batch of {federation.batch_size} is no sample; set it to what every client has",
        )
        return
    yield (
        privacy.noise == "central",
        f"{setting} with privacy.noise = {privacy.noise!r}",
        "noise of the clients' own is for a server that is not trusted, and the server knows whom it asks; use 'none'",
    )
    yield (
        0 < federation.cohort_size < partition.num_clients,
        f"{setting} with federation.cohort_size = {federation.cohort_size}",
        "all clients are asked, so nothing is sampled; set it below partition.num_clients, or use 'none'",
    )
    yield (
        federation.min_replies == 1,
        f"{setting} with federation.min_replies = {federation.min_replies}",
        "whether a round moves anything would tell how many took part; set it to 1",
    )
