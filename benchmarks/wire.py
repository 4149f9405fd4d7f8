"""What a client and round put on the wire, over what they must say, and what encoding costs, over a forward pass.

Rounds of scalars (one step of ten directions, float32; keys of the cohort's or of the client's own; signs alone) and of
weights (LoRA of rank 8 on MiniLM, 38,400 numbers a target pair; the starter's 3.8 M), for cohorts of 3 and of 100. An
order brings one missed round. "Must say": the bytes of the numbers themselves, nothing else. Time: an order and a reply
encoded, decoded and checked, over one forward of the starter on eight sequences of 48 tokens, in the same turn.

Bytes are those of the encoded messages, as runs report them; what a transport adds is not in them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks._batches import choice_batch
from benchmarks._report import arguments, in_turns, ratio, report
from seedtune.analysis.one_step import forward, work
from seedtune.fed import messages
from seedtune.fed.messages import Order, Reply
from seedtune.models.load import load
from seedtune.sections import ModelConfig
from seedtune.space import DIGEST_BYTES, Space, TensorSpec
from seedtune.zo.trajectory import RoundRecord

NUM_DIRECTIONS = 10
STATE = bytes(DIGEST_BYTES)
WEIGHTS = {"LoRA weights": (384, 100), "all weights": (1024, 3722)}
COHORTS = (3, 100)


@dataclass(frozen=True)
class Exchange:
    """One client's messages in a round, and the bytes of the numbers that they carry."""

    order: Order
    reply: Reply
    space: Space
    must_down: int
    must_up: int

    def run(self) -> None:
        order = messages.decode_order(messages.encode_order(self.order))
        for record in order.missed:
            messages.unpack_record(record)
        reply = messages.decode_reply(messages.encode_reply(self.reply))
        for packed in (order.weights, reply.weights):
            if packed:
                messages.unpack_weights(packed, self.space)


def exchanges(cohort: int) -> dict[str, Exchange]:
    numbers = np.linspace(-1, 1, cohort * NUM_DIRECTIONS, dtype=np.float32).reshape(cohort, 1, NUM_DIRECTIONS)
    told = {
        "scalars, shared keys": numbers[:1],
        "scalars, own keys": numbers,
        "signs, shared keys": np.sign(numbers[:1]),
    }
    return {
        **{name: _of_scalars(scalars, cohort, 1 / 8 if "signs" in name else 4) for name, scalars in told.items()},
        **{name: _of_weights(shape) for name, shape in WEIGHTS.items()},
    }


def _of_scalars(scalars: np.ndarray, cohort: int, width: float) -> Exchange:
    record = RoundRecord(0, tuple(range(cohort)), scalars, np.full(len(scalars), 1e-3), STATE)
    order, reply = Order(1, 0, STATE, 1e-3, (messages.pack_record(record),)), Reply(1, 0, 100, 20, 0.5, scalars[0])
    return Exchange(order, reply, Space(()), round(scalars.size * width), round(NUM_DIRECTIONS * width))


def _of_weights(shape: tuple[int, int]) -> Exchange:
    weights = {"w": torch.linspace(-1, 1, shape[0] * shape[1]).view(shape)}
    packed, none = messages.pack_weights(weights), np.zeros((0, 0), np.float32)
    order, reply = Order(1, 0, STATE, 1e-3, (), packed), Reply(1, 0, 100, 20, 0.5, none, packed, scalar_rms=1.0)
    size = weights["w"].nbytes
    return Exchange(order, reply, Space((TensorSpec("w", shape, "float32", 0),)), size, size)


def figures(quick: bool) -> list[dict[str, Any]]:
    model = load(ModelConfig(name="starter"), None, lambda name, shape: torch.zeros(shape))
    batch, rows = choice_batch(model.module.config.vocab_size, 8, 48, is_causal=True), []
    forwards = work(model, batch)
    for cohort in COHORTS:
        for name, one in exchanges(cohort).items():
            down, up = len(messages.encode_order(one.order)), len(messages.encode_reply(one.reply))
            times = in_turns({"exchange": one.run, "forward": lambda: forward(forwards)}, 3 if quick else 9)
            rows.append(
                {
                    "cohort": cohort, "what": name, "down, bytes": down, "of which numbers": one.must_down,
                    "up, bytes": up, "numbers": one.must_up,
                    "time, thousandths of a forward": ratio([1e3 * t for t in times["exchange"]], times["forward"]),
                }
            )  # fmt: skip
    return rows


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    report({"wire": figures(options.quick)}, options.json)


if __name__ == "__main__":
    main()
