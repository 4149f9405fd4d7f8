"""Time of a split step over its counted forwards, and of a step whose suffixes share a forward over one by one.

Random weights in the shape of MiniLM-L6 (a classifier) and of OPT-125m (answers of one token), cut at half depth, 32
tokens a sequence; nested, P1 = 1, P2 = 4, central, Rademacher; all weights tuned, or LoRA of rank 8 (and the head).
Counted forwards: a step's two prefixes and eight suffixes run plainly, at theta, one by one. A step adds the directions
and the move of the weights, which takes the time of reading and writing the tuned tensors whatever the batch.

Processor seconds of one thread: what a clock shows where no other process has the core.
"""

from collections.abc import Callable, Sequence
from functools import partial
from time import process_time
from typing import Any

import numpy as np
import torch
from transformers import BertConfig

from benchmarks._batches import choice_batch
from benchmarks._report import arguments, in_turns, ratio, report, spread
from seedtune.analysis.one_step import MU, RATE, Work, work
from seedtune.config import Recipe
from seedtune.fed.evaluations import Evaluations, evaluations_of
from seedtune.fed.split_steps import CutLosses, split_of
from seedtune.models.blocks import Cut, cut_before, default_cut
from seedtune.models.objective import loss
from seedtune.models.random_models import random_classifier, random_model, shape
from seedtune.sections import LocalConfig, ModelConfig, SplitConfig
from seedtune.zo import split
from seedtune.zo.expansion import updates_of
from seedtune.zo.meter import Meter, Tally, shape_of
from seedtune.zo.noise import Distribution, derive_key
from seedtune.zo.update import apply

NUM_TOKENS = 32
TARGETS = {"minilm-l6": ("query", "value"), "opt-125m": ("q_proj", "v_proj")}
TURNS = {"minilm-l6": {1: 9, 4: 7, 16: 3}, "opt-125m": {1: 5, 4: 3}}  # by the number of sequences
MINILM = BertConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12)
DIRECTIONS = SplitConfig(num_suffix_directions=4, baseline="leave-one-out")


class Steps:
    """The calls that are timed, all on one model and one batch."""

    def __init__(self, name: str, is_lora: bool, num_sequences: int):
        self.work = _work(name, is_lora, num_sequences)
        module = self.work.model.module
        self.cut: Cut = cut_before(module, default_cut(module))
        self._split = split_of(DIRECTIONS, self.cut, self.work.space)
        self._whole = partial(loss, self.work.model, self.work.batch)
        self._meter, self._count = Meter(), 0

    @torch.no_grad()
    def forwards(self) -> list[float]:
        """What is counted."""
        found = []
        for _ in range(2):
            kept = self.cut.prefix(self._whole)
            found += [float(self.cut.suffix(self._whole, kept)) for _ in range(DIRECTIONS.num_suffix_directions)]
        return found

    def decided(self, way: str) -> Evaluations:
        recipe = Recipe(local=LocalConfig(estimator="split", evaluations=way), split=DIRECTIONS)
        return evaluations_of(recipe, self.work.model.module, self.cut, self.work.perturber)

    def step(self, evaluations: Evaluations) -> None:
        """As a client makes it."""
        self._count += 1
        bound, most = self.work, evaluations.most(shape_of(self.work.batch))
        keys = [derive_key(0, "direction", round=self._count, direction=p) for p in range(self._split.num_scalars)]
        tally = Tally(self._meter, shape_of(bound.batch))
        blocks = CutLosses(self.cut, bound.perturber, self._whole, tally, evaluations.batched, most)
        probe = split.probe(blocks, self._split, True, keys, MU, Distribution.RADEMACHER)
        self._move(keys, probe.scalars)

    def move(self) -> None:
        """What of a step moves the weights."""
        num = self._split.num_scalars
        self._move([derive_key(0, "direction", direction=p) for p in range(num)], np.arange(num, dtype=np.float32))

    def _move(self, keys: Sequence[int], scalars: np.ndarray) -> None:
        updates = updates_of(self._split, keys, -RATE / len(keys) * scalars, derive_key(0, "rounding"))
        apply(self.work.space, self.work.weights, updates, Distribution.RADEMACHER)


def _work(name: str, is_lora: bool, num_sequences: int) -> Work:
    adapter = ModelConfig(name="random", adapter="lora", lora_targets=TARGETS[name]) if is_lora else None
    is_causal = name != "minilm-l6"
    model = random_model(shape(name), torch.float32, adapter) if is_causal else random_classifier(MINILM, adapter)
    return work(model, choice_batch(MINILM.vocab_size, num_sequences, NUM_TOKENS, is_causal))


def times(quick: bool) -> list[dict[str, Any]]:
    names = ("minilm-l6",) if quick else tuple(TURNS)
    cases = [(name, is_lora, size) for name in names for is_lora in (True, False) for size in TURNS[name]]
    return [_times(*case, 1 if quick else TURNS[case[0]][case[2]]) for case in (cases[::4] if quick else cases)]


def _times(name: str, is_lora: bool, num_sequences: int, num_turns: int) -> dict[str, Any]:
    steps = Steps(name, is_lora, num_sequences)
    ways = {way: steps.decided(way) for way in ("one-by-one", "batched")}
    calls: dict[str, Callable[[], object]] = {way: partial(steps.step, decided) for way, decided in ways.items()}
    found = in_turns(
        {"forwards": steps.forwards, "move": steps.move, **calls},
        num_turns,
        seconds=0,
        clock=process_time,
        most_seconds=10,
    )
    most = steps.decided("auto").most(shape_of(steps.work.batch))
    auto = "one-by-one" if most == 1 else "batched"
    return {
        "model": name, "tuned": "LoRA" if is_lora else "all", "sequences": num_sequences,
        "counted forwards, ms": spread([t * 1e3 for t in found["forwards"]]),
        "one by one / forwards": ratio(found["one-by-one"], found["forwards"]),
        "batched / forwards": ratio(found["batched"], found["forwards"]),
        "the move / forwards": ratio(found["move"], found["forwards"]),
        "batched / one by one": ratio(found["batched"], found["one-by-one"]), "auto": auto,
    }  # fmt: skip


def main() -> None:
    options = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(1)
    report({"split": times(options.quick)}, options.json)


if __name__ == "__main__":
    main()
