import numpy as np
import pytest
import torch
from small_federation import Answers, batch_of, module, protocol, recipe, reply, server, site, squared_error

from seedtune.engines.in_process import InProcess
from seedtune.fed.messages import pack_weights
from seedtune.fed.rounds import one_round, run_rounds
from seedtune.space import copied, digest
from seedtune.zo import noise

WEIGHTS = {"upload": "weights"}
NONE = np.zeros((0, 0), np.float32)


def sent(client, weights, **changed):
    return reply(client, scalars=NONE, weights=pack_weights(weights), **changed)


def shifted(at, by):
    return {name: tensor + by for name, tensor in copied(at.replica.weights).items()}


@pytest.mark.parametrize("weighting, mean", [("examples", 3.0), ("equal", 2.5)])
def test_the_server_takes_the_mean_of_the_weights(weighting, mean):
    settings = recipe(federation={**WEIGHTS, "weighting": weighting})
    at = site(settings)
    expected = shifted(at, mean)
    answers = {c: sent(c, shifted(at, c + 1.0), num_examples=c + 1) for c in range(4)}
    _, result = one_round(server(at), protocol(settings), Answers(answers))
    for name, tensor in at.replica.weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)
    assert result.record.is_snapshot and result.record.digest == digest(at.replica.weights)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_of_one_is_that_one(dtype):
    settings = recipe(federation=WEIGHTS, partition={"num_clients": 1})
    at = site(settings)
    answer = shifted(at, 0.3)
    one_round(server(at), protocol(settings), Answers({0: sent(0, answer)}))
    assert digest(at.replica.weights) == digest(answer)


def test_weights_that_cannot_be_averaged_are_left_out():
    settings = recipe(federation=WEIGHTS)
    at = site(settings)
    good = shifted(at, 1.0)
    answers = {
        0: sent(0, shifted(at, float("nan"))),
        1: sent(1, {"weight": good["weight"]}),
        2: reply(2, scalars=NONE, weights=b"nonsense"),
        3: sent(3, good),
    }
    _, result = one_round(server(at), protocol(settings), Answers(answers))
    assert result.failed.keys() == {0, 1, 2} and result.record.clients == (3,)
    assert result.failed[0] == "NotFinite: a message breaks a rule: weights are finite"
    assert result.failed[1] == "MessageError: a message breaks a rule: weights fill the tuned space"
    assert result.failed[2].startswith("MessageError: weights in a message are not readable: ")
    assert digest(at.replica.weights) == digest(good)


def test_a_round_without_replies_moves_nothing():
    settings = recipe(federation={**WEIGHTS, "dropout_rate": 0.999})
    at = site(settings)
    before = at.replica.digest
    _, result = one_round(server(at), protocol(settings), Answers())
    assert result.record.clients == () and not result.record.is_snapshot and result.record.digest == before


@pytest.mark.parametrize("steps", [1, 4])
def test_weights_and_scalars_are_the_same_algorithm(steps):
    """One round of each from the same start: the means differ only by float32 rounding."""
    ends = []
    for exchange in ("weights", "scalars"):
        settings = recipe(federation={"upload": exchange, "local_steps": steps, "num_rounds": 1})
        at = site(settings)
        before = copied(at.replica.weights)
        for _ in run_rounds(server(at), protocol(settings), InProcess(at)):
            pass
        ends.append(at.replica.weights)
    for name, tensor in ends[0].items():
        torch.testing.assert_close(tensor, ends[1][name], rtol=0, atol=2e-6)
        assert (tensor - before[name]).abs().max() > 1e-3


def test_fedavg_of_one_client_is_plain_training():
    settings = recipe(
        partition={"num_clients": 1},
        federation={**WEIGHTS, "local_steps": 2, "num_rounds": 3},
        local={"order": "first"},
    )
    at = site(settings)
    for _ in run_rounds(server(at), protocol(settings), InProcess(at)):
        pass

    layer = module().requires_grad_(True)
    sgd = torch.optim.SGD(layer.parameters(), lr=0.01)
    for round_, step in np.ndindex(3, 2):
        sgd.zero_grad()
        key = noise.derive_key(settings.run.seed, "batch", round=round_, client=0, step=step)
        squared_error(layer)(batch_of(settings, 0, key)).backward()
        sgd.step()
    assert digest({name: parameter.data for name, parameter in layer.named_parameters()}) == at.replica.digest
