"""Each combination that could not be accounted for is refused, with the setting and what to do."""

import pytest
from private_recipes import private, sampling_clients, sampling_examples
from small_federation import recipe

from seedtune.errors import ConfigError
from seedtune.privacy.plan import Plan
from seedtune.privacy.rules import checked, resolved

LOCAL, EXAMPLE = {"noise": "local"}, {"unit": "example"}
REFUSED = {
    "federation.upload": {"federation": {"keys": "own", "upload": "weights"}},
    "federation.aggregation = 'median'": {"federation": {"aggregation": "median"}},
    "federation.aggregation = 'sign-vote'": {"federation": {"aggregation": "sign-vote"}, "privacy": LOCAL},
    "federation.weighting": {"federation": {"weighting": "examples"}},
    "federation.keys = 'own' with privacy.noise = 'central'": {"federation": {"keys": "own"}},
    "local.clip": {"local": {"clip": 2.0}},
    "byzantine.num_clients": {"byzantine": {"num_clients": 1}},
    "federation.local_steps": {"federation": {"local_steps": 2}, "privacy": EXAMPLE},
    "model.quantisation": {"model": {"quantisation": "8bit", "adapter": "lora"}, "privacy": EXAMPLE},
    "local.estimator": {"local": {"estimator": "split", "num_directions": 1}, "privacy": EXAMPLE},
    "personalise.policy": {"personalise": {"policy": "random"}},
    "run.on_surge": {"run": {"on_surge": "stop"}},
    "partition.heldout_fraction": {"partition": {"heldout_fraction": 0.1}},
    "baseline.num_steps": {"baseline": {"num_steps": 5}},
    "model.head": {"model": {"head": "probe"}},
    "privacy.noise_multiplier = 0 without": {"privacy": {"noise_multiplier": 0.0}},
    "privacy.noise_multiplier = 0.01": {"privacy": {"noise_multiplier": 0.01}},
    "federation.num_rounds = 0": {
        "federation": {"num_rounds": 0},
        "privacy": {"noise_multiplier": 0.0, "target_epsilon": 1.0},
    },
}
NOT_SAMPLED = {
    "with partition.min_examples": lambda: sampling_examples("poisson", partition={"min_examples": 5}),
    "with privacy.noise = 'local'": lambda: sampling_clients("poisson", privacy=LOCAL),
    "with federation.cohort_size = 0": lambda: sampling_clients("fixed-size", federation={"cohort_size": 0}),
    "with federation.cohort_size = 20": lambda: sampling_clients("poisson", federation={"cohort_size": 20}),
    "with federation.min_replies": lambda: sampling_clients("poisson", federation={"min_replies": 2}),
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_cannot_be_accounted_for_is_refused(setting):
    with pytest.raises(ConfigError) as refusal:
        checked(private(**REFUSED[setting]))
    assert str(refusal.value).startswith(setting)
    assert "cannot be combined with privacy.unit" in str(refusal.value)


@pytest.mark.parametrize("setting", NOT_SAMPLED)
def test_a_sample_that_is_none_or_not_secret_is_refused(setting):
    with pytest.raises(ConfigError, match=f"privacy.sampling = '(poisson|fixed-size)' {setting}"):
        checked(NOT_SAMPLED[setting]())


def test_a_budget_of_less_than_a_round_is_refused():
    with pytest.raises(ConfigError, match="less than one round is worth"):
        resolved(private(privacy={"noise_multiplier": 0.5, "target_epsilon": 0.1}))


def test_what_is_local_may_be_told_apart_and_reduced_robustly():
    assert checked(private(privacy=LOCAL, federation={"keys": "own"})).denominator == 1
    assert checked(private(privacy=LOCAL, federation={"aggregation": "median"})) is not None


def test_no_privacy_is_no_plan_and_changes_nothing():
    assert Plan.of(recipe()) is None
    assert resolved(recipe()) == recipe()


def test_a_plan_divides_by_what_is_expected():
    assert checked(private()).denominator == 4
    assert checked(sampling_clients("poisson")).denominator == 4
    assert checked(sampling_examples("fixed-size")).denominator == 5 * 4
    assert checked(sampling_examples("fixed-size", privacy=LOCAL)).denominator == 5


def test_a_plan_knows_what_has_to_be_hidden():
    hidden = [(plan.hides_cohort, plan.hides_batches) for plan in map(
        checked, (private(), sampling_clients("poisson"), sampling_examples("poisson"))
    )]  # fmt: skip
    assert hidden == [(False, False), (True, False), (False, True)]
