"""FedMeZO: both uploads are one algorithm, a client's own rate is what its steps and its share are scaled by."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_federation import batch_of, module, protocol, recipe, server, site

from seedtune import presets
from seedtune.engines.in_process import InProcess
from seedtune.fed.messages import decode_reply, unpack_weights
from seedtune.fed.personalise import POLICIES
from seedtune.fed.rounds import after, one_round, run_rounds
from seedtune.recipe_text import build, merged
from seedtune.space import copied, digest
from seedtune.zo import noise
from seedtune.zo.noise import Distribution
from seedtune.zo.trajectory import direction_key

SEED, MU, RATE = 11, 0.05, 1e-3  # with a scale so large, scalars hardly feel the rounding of losses
UPLOADS = ("scalars", "weights")


def fedmezo(**over):
    """The preset over the small federation, without LoRA: there is one layer."""
    method = presets.read("methods", "fedmezo") | {"model": {}}
    local = {"learning_rate": RATE, "perturbation_scale": MU}
    values = merged(merged(recipe().model_dump(), method), {"local": local})
    return build(merged(values, over))


def directions(key: int, like) -> dict[str, torch.Tensor]:
    """z by tensor, as the preset's distribution draws it."""
    space = site(recipe()).perturber.space
    return {
        spec.name: noise.values(key, spec.start, spec.num_elements, Distribution.GAUSSIAN).view(like[spec.name].shape)
        for spec in space.tensors
    }


def loss_of(weights, batch) -> float:
    return float(torch.nn.functional.mse_loss(torch.nn.functional.linear(batch[0], *weights.values()), batch[1]))


def two_point_step(weights, batch, key: int, rate: float) -> tuple[dict[str, torch.Tensor], float]:
    """(theta - rate g z, g), with whole copies of the weights at theta + mu z and theta - mu z."""
    z = directions(key, weights)
    above, below = ({n: w + np.float32(sign * MU) * z[n] for n, w in weights.items()} for sign in (1, -1))
    scalar = np.float32((loss_of(above, batch) - loss_of(below, batch)) / (2 * MU))
    move = float(np.float32(-rate * np.float64(scalar)))
    return {n: w + np.float32(move) * z[n] for n, w in weights.items()}, float(scalar)


def start() -> dict[str, torch.Tensor]:
    return {name: parameter.data.clone() for name, parameter in module().named_parameters()}


@pytest.mark.parametrize("upload", UPLOADS)
def test_one_client_and_one_step_are_centralised_two_point_steps_by_digest(upload):
    settings = fedmezo(partition={"num_clients": 1}, federation={"upload": upload, "local_steps": 1, "num_rounds": 4})
    at = site(settings)
    digests = [result.record.digest for _, result in run_rounds(server(at), protocol(settings), InProcess(at))]

    weights, expected = start(), []
    for round_ in range(4):
        batch = batch_of(settings, 0, noise.derive_key(SEED, "batch", round=round_, client=0, step=0))
        weights, _ = two_point_step(weights, batch, direction_key(SEED, round_, 0, 0, 0), RATE)
        expected.append(digest(weights))
    assert digests == expected and len(set(digests)) == 4


class Recording(InProcess):
    """Keeps the replies as they were sent."""

    def exchange(self, orders):
        self.__dict__["sent"] = {}
        for client, answer in super().exchange(orders):
            self.sent[client] = answer
            yield client, answer


def history(settings):
    """Weights, rates of the coming round, signals and bytes up after each round."""
    at, found = site(settings), []
    for state, result in run_rounds(server(at), protocol(settings), InProcess(at)):
        rates = [state.rate * state.rate_factor(client) for client in range(4)]
        found.append((copied(at.replica.weights), rates, result))
    return found


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("federation", [{}, {"cohort_size": 3, "dropout_rate": 0.2}], ids=["all", "some"])
def test_weights_and_scalars_reach_the_same_model(policy, federation):
    """Seven rounds, so that `five-round` acts in two of them."""
    common = {"local_steps": 3, "num_rounds": 7, **federation}
    stories = {
        upload: history(fedmezo(federation={**common, "upload": upload}, personalise={"policy": policy}))
        for upload in UPLOADS
    }
    by_scalars, by_weights = stories.values()
    for (ours, rates, one), (theirs, other_rates, other) in zip(by_scalars, by_weights, strict=True):
        assert one.record.clients == other.record.clients and one.signals.keys() == other.signals.keys()
        np.testing.assert_allclose(rates, other_rates, rtol=1e-3)
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-5)
    moved = max(float((by_scalars[-1][0][n] - w).abs().max()) for n, w in start().items())
    assert moved > 0.1  # ten thousand times what they differ by at most


@pytest.mark.parametrize("steps, num_directions", [(1, 1), (30, 1), (30, 8)])
def test_scalars_cost_four_bytes_a_direction_and_weights_the_tensors(steps, num_directions):
    local, tuned = {"num_directions": num_directions}, sum(tensor.nbytes for tensor in start().values())
    for upload, least, most in (("scalars", 4 * steps * num_directions, 70), ("weights", tuned, 300)):
        settings = fedmezo(federation={"upload": upload, "local_steps": steps, "num_rounds": 1}, local=local)
        ((_, _, result),) = history(settings)
        assert 0 <= result.bytes_up / 4 - least <= most, upload


SIGNALS = {0: 1.0, 1: 2.0, 2: 6.0, 3: 3.0}
PHI = (-2 / 3, -1 / 3, 1.0, 0.0)
"""Of these signals: mean 3, gaps -2, -1, 3, 0."""


@pytest.mark.parametrize("weighting, shares", [("equal", [0.25] * 4), ("examples", [0.1, 0.2, 0.3, 0.4])])
@pytest.mark.parametrize("upload", UPLOADS)
def test_a_clients_own_rate_scales_its_steps_and_its_share(upload, weighting, shares):
    """Round 1, own keys, two steps: the second is measured where the client's own rate has led it."""
    settings, at = _personal(shares, upload=upload, keys="own", weighting=weighting)
    state, result = one_round(_after_signals(at), protocol(settings), InProcess(at))

    mean, scalars = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in start().items()}, []
    for client, share in enumerate(shares):
        weights, found = _local_steps(settings, client, sender=client)
        scalars.append(found)
        for name, tensor in weights.items():
            mean[name] += share * tensor.double()
    for name, tensor in at.replica.weights.items():
        torch.testing.assert_close(tensor.double(), mean[name], rtol=0, atol=2e-5)
    assert result.rate == RATE and state.rates.personal.signals[:4, 0].tolist() == list(result.losses.values())
    if upload == "scalars":
        np.testing.assert_allclose(result.record.scalars[:, :, 0], scalars, rtol=2e-3, atol=2e-3)
        factors = [RATE * (1 + 0.9 * phi) * share for phi, share in zip(PHI, shares, strict=True)]
        np.testing.assert_allclose(result.record.factors, factors, rtol=1e-12)


def test_with_shared_keys_a_clients_own_rate_weights_its_scalars():
    shares = [0.1, 0.2, 0.3, 0.4]
    settings, at = _personal(shares, upload="scalars", keys="shared", weighting="examples")
    _, result = one_round(_after_signals(at), protocol(settings), InProcess(at))

    each = np.array([_local_steps(settings, client, sender=None)[1] for client in range(4)])
    mean = sum((1 + 0.9 * phi) * share * own for phi, share, own in zip(PHI, shares, each, strict=True))
    np.testing.assert_allclose(result.record.scalars[0, :, 0], mean, rtol=2e-3, atol=2e-3)
    assert result.record.factors.tolist() == [RATE]


def _personal(shares, **federation):
    settings = fedmezo(federation={"local_steps": 2, **federation}, personalise={"policy": "round-wise", "alpha": 0.9})
    return settings, site(settings, num_examples=lambda client: round(shares[client] * 100))


def _after_signals(at):
    """A server before round 1 whose clients have said `SIGNALS`, on the weights of the start."""
    state = server(at)
    quiet = {"dropout_rate": 0.999999}
    empty = at.recipe.model_copy(update={"federation": at.recipe.federation.model_copy(update=quiet)})
    _, result = one_round(replace(state, recipe=empty), protocol(empty), InProcess(at))
    assert result.record.clients == ()
    return after(state, replace(result, signals=SIGNALS))


def _local_steps(settings, client: int, sender: int | None):
    """A client's two steps of round 1 at its own rate, by hand: its weights, its projected gradients."""
    weights, scalars = start(), []
    for step in range(2):
        batch = batch_of(settings, client, noise.derive_key(SEED, "batch", round=1, client=client, step=step))
        key = direction_key(SEED, 1, sender, step, 0)
        weights, scalar = two_point_step(weights, batch, key, RATE * (1 + 0.9 * PHI[client]))
        scalars.append(scalar)
    return weights, scalars


@pytest.mark.parametrize("federation", [{}, {"cohort_size": 3}], ids=["all", "some"])
def test_model_diff_reads_the_same_distances_from_both_uploads(federation):
    """And they are the definition: sum over tensors of the norm of a client's update less the mean update."""
    common = {"local_steps": 3, "num_rounds": 3, **federation}
    settings = fedmezo(federation={**common, "upload": "weights"}, personalise={"policy": "model-diff"})
    by_scalars = history(fedmezo(federation={**common, "upload": "scalars"}, personalise={"policy": "model-diff"}))
    at = site(settings)
    engine, space = Recording(at), at.perturber.space
    rounds = run_rounds(server(at), protocol(settings), engine)
    for (state, result), (_, rates, other) in zip(rounds, by_scalars, strict=True):
        sent = {client: unpack_weights(decode_reply(answer).weights, space) for client, answer in engine.sent.items()}
        expected = 0.0
        for name in start():
            stacked = np.stack([weights[name].double().numpy().ravel() for weights in sent.values()])
            expected += np.linalg.norm(stacked - stacked.mean(0), axis=1)
        np.testing.assert_allclose(list(result.signals.values()), expected, rtol=1e-12)
        np.testing.assert_allclose(list(other.signals.values()), expected, rtol=1e-3)
        ours = [state.rate * state.rate_factor(client) for client in range(4)]
        np.testing.assert_allclose(rates, ours, rtol=2e-3)
    assert len(set(ours)) >= 3 and max(ours) == pytest.approx(1.5 * RATE)
