"""What the four studies of open questions say and draw of made-up measurements: known answers, and honest ones."""

from itertools import chain
from pathlib import Path

from small_studies import run

from seedtune.report import figure
from seedtune.studies import best_rank, by_layer, memory, signals
from seedtune.studies.measured import Measured, Result, Taken
from seedtune.studies.measuring import Kept, Reading
from seedtune.studies.study import View


def taken(case: str, name: str, seed: int, *readings: Reading, subject: str = "") -> Taken:
    return Taken(case, subject, name, seed, Kept(Path("x.json"), "", readings, 1.0))


def drawn(measured: Measured) -> str:
    """Every panel of the study's own can be drawn."""
    own = [view(measured) for view in measured.study.views if not isinstance(view, View)]
    return figure.draw("Title", "Note", own)


def whole(case: str, name: str, rank: float, absolute: tuple[float, float], seed: int, subject="") -> Taken:
    """Of a Hessian with two blocks; `absolute`: tr|H|/|H| from all the steps, and from half of them."""
    parts = [Reading("layer 0", "stable rank", 2 * rank), Reading("behind the layers", "stable rank", 3.0)]
    found = (Reading("whole", quantity, value) for quantity, value in zip(by_layer.ABSOLUTE, absolute, strict=True))
    return taken(case, name, seed, Reading("whole", "stable rank", rank), *found, *parts, subject=subject)


def by_ranks(subject: str, stable: float, losses: dict[int, tuple[float, ...]]) -> tuple[list[Result], list[Taken]]:
    results = [
        Result(f"{subject}, rank {rank}", "scalars", float(rank), tuple(
            run(3.0, loss, seed=seed) for seed, loss in enumerate(own)), subject=subject)
        for rank, own in losses.items()
    ]  # fmt: skip
    results.append(Result(f"{subject}, rank 1, weights", "weights", 1.0, (run(3.0, 2.9),), subject=subject))
    found = [whole(f"{subject}, all tensors", "start", stable + seed, (9, 8), seed, subject) for seed in range(3)]
    return results, found


def ranked(*subjects) -> Measured:
    results, found = zip(*subjects, strict=True)
    return Measured(best_rank.BEST_RANK, tuple(chain(*results)), 3, tuple(chain(*found)))


def test_the_best_rank_is_told_with_those_that_are_as_good_and_how_it_goes_with_the_stable_rank():
    """Losses of a vary between seeds by more than between ranks 1 and 4: it is the difference that counts."""
    one = {1: (2.0, 2.4, 2.8), 4: (2.1, 2.5, 2.9), 16: (2.2, 2.2, 3.1)}
    two = {1: (2.5, 2.6, 2.7), 4: (2.0, 2.1, 2.2), 16: (2.3, 2.4, 2.5)}
    three = {1: (2.5, 2.6, 2.7), 4: (2.4, 2.5, 2.6), 16: (2.0, 2.1, 2.2)}
    measured = ranked(by_ranks("a", 5, one), by_ranks("b", 10, two), by_ranks("c", 20, three))
    text = best_rank.finding(measured)
    assert "a: stable rank 6.0 ± 1.7 of the whole Hessian, best LoRA rank 1, the largest or smallest tried" in text
    assert "not told apart from 16)" in text and "not told apart from 4" not in text
    assert "b: stable rank 11.0 ± 1.7 of the whole Hessian, best LoRA rank 4 (test loss 2.100" in text
    assert "over 3 subjects, seed by seed, is 0.67 ± 0.97" in text  # 1, 0 (on seed 1 the best of a is 16) and 1
    assert "a client of a sends 6 bytes a round as scalars at any rank" in text and text.endswith(".")
    assert "best LoRA rank" in drawn(measured)


def test_few_subjects_say_nothing_of_how_ranks_go_together():
    measured = ranked(by_ranks("a", 5, {1: (2.0,) * 3, 4: (2.0,) * 3}))
    assert "fewer than 3 subjects tell nothing" in best_rank.finding(measured)


def layered(scale: float) -> Measured:
    results = tuple(Result(case, "", None, (run(3.0, 2.0), run(3.0, 2.2, seed=1))) for case in ("a", "b"))
    found = [
        whole(case, name, factor * scale + seed, (factor * 100, factor * 50), seed)
        for case, factor in (("a", 1), ("b", 5)) for name in ("start", "tuned") for seed in (0, 1)
    ]  # fmt: skip
    return Measured(by_layer.BY_LAYER, results, 2, tuple(found))


def test_ranks_by_layer_are_held_against_the_bound():
    text = by_layer.finding(layered(10))
    assert text.startswith("Over 2 seeds, a: the stable rank of the whole Hessian is 10.5 ± 3.2 at the start")
    assert "(test loss 3.000 ± 0.000) and 10.5 ± 3.2 tuned (2.100 ± 0.631)" in text
    assert "the largest of a layer is 101.0 ± 6.3 (b, layer 0, start), 8 of 8 lie below 200" in text
    assert "is at least a, start: 100 ± 0 (50 ± 0 with half of the steps)" in text and "b, tuned: 500 ± 0 (250" in text
    assert "4 of 8 lie below 200" in by_layer.finding(layered(100)).replace("6 of 8", "4 of 8")
    assert "tr|H|/|H|" in drawn(layered(10))


def personalised(effect: float, seeds: int = 3) -> Measured:
    results, found = [], []
    for alpha in signals.ALPHAS:
        for policy in signals.STRATEGIES:
            moved = effect if (policy, alpha) == ("model-diff", 0.1) else 0.0
            runs = tuple(run(3.0, 2.5 + s, 2.0 + s + moved + 0.01 * (s % 2), seed=s) for s in range(seeds))
            label = f"{policy}, alpha {alpha:g}"
            results.append(Result(label, policy, alpha, runs))
            for seed in range(seeds):
                clients = [
                    Reading(f"client {i}", name, value) for i in range(4)
                    for name, value in (("distance", i / alpha), ("loss", i + seed), ("signal", i / alpha))
                ]  # fmt: skip
                found.append(taken(label, "records", seed, Reading("", "rate and distance", 0.5), *clients))
    return Measured(signals.SIGNALS, tuple(results), seeds, tuple(found))


def test_policies_are_held_against_fixed_seed_by_seed():
    """Losses differ between seeds by whole nats, and the difference is seen all the same."""
    text = signals.finding(personalised(-0.2))
    assert (
        "final test loss, 1 of 8 differences lie beyond their band (model-diff at alpha 0.1 -0.2000 ± 0.0000)" in text
    )
    assert "update distance (model-diff) 1.00 (1.00 to 1.00)" in text and text.endswith(".")
    none = signals.finding(personalised(0.0))
    assert "final test loss, none of 8 differences lies beyond its band (at most ± 0.0000)" in none
    assert "nothing to tell on one seed" in signals.finding(personalised(-0.2, seeds=1))
    assert "labels" in drawn(personalised(-0.2))


def test_a_policy_that_diverged_is_no_difference():
    measured = personalised(float("inf"))
    assert signals.difference(measured, "model-diff", 0.1, "final test loss") is None
    assert "none of 7 differences" in signals.finding(measured)


def sized(*sizes: float) -> Measured:
    bytes_of = {"inference": 4, "two-point": 4, "SGD": 8, "AdamW": 16}
    found = [
        taken(f"m{size}, float32", method, 0, Reading("", "parameters", size), Reading("", "peak", 4e8 + each * size))
        for size in sizes for method, each in bytes_of.items()
    ]  # fmt: skip
    too_large = taken("huge, float32", "AdamW", 0, Reading("", "parameters", 1e12), Reading("", "needed", 16e12))
    return Measured(memory.MEMORY, (), 1, (*found, too_large))


def test_memory_is_a_line_and_what_it_leads_to_is_said_to_be_extrapolated():
    text = memory.growth(sized(1e7, 1e8, 1e9))
    assert "3 models of 10 M to 1 B parameters" in text and "16.00 ± 0.00 for AdamW" in text
    far = "extrapolated to 7 B, which was not measured: 28 GB for inference, 28 GB for two-point, 56 GB for SGD"
    assert far in text
    assert "too few sizes" in memory.growth(sized(1e7, 1e8))
    assert "parameters" in drawn(sized(1e7, 1e8, 1e9))
