"""Sentences: computed from the data, the opposite where the data are mirrored, silent about what nobody knows."""

import math

import pytest
from small_studies import measured, result, run

from seedtune.studies import findings
from seedtune.studies.catalogue import STUDIES
from seedtune.studies.findings import against, auto_against_best, computation, pairs, savings, trend
from seedtune.studies.measured import Measured, Result

CLOSE = (-0.01, 0.0, 0.01)
"""Three seeds about a loss; half their band is 0.017."""
FAR = (-1.0, 0.0, 1.0)


def case(label: str, loss: float, spread=CLOSE, **more) -> Result:
    return result(label, *(loss + part for part in spread), **more)


def sweep(*losses: float, spread=CLOSE) -> Measured:
    return measured(*(case(f"H = {x}", loss, spread, x=x) for x, loss in zip((10, 30, 50), losses, strict=True)))


def test_a_trend_that_falls_and_its_mirror():
    assert trend("H")(sweep(1.8, 1.6, 1.5)) == (
        "Over 3 seeds, the test loss falls as H grows, from H = 10 (1.800 ± 0.017) to H = 50 (1.500 ± 0.017)."
    )
    assert trend("H")(sweep(1.5, 1.6, 1.8)) == (
        "Over 3 seeds, the test loss rises as H grows, from H = 10 (1.500 ± 0.017) to H = 50 (1.800 ± 0.017)."
    )


def test_a_best_place_in_the_middle_is_said():
    assert trend("H")(sweep(1.8, 1.5, 1.6)) == (
        "Over 3 seeds, the test loss is lowest at H = 30 (1.500 ± 0.017) and highest at H = 10 (1.800 ± 0.017)."
    )


def test_overlapping_bands_are_no_difference():
    assert trend("H")(sweep(1.8, 1.6, 1.5, spread=FAR)) == (
        "Over 3 seeds, H makes no difference beyond the band, from H = 50 (1.500 ± 1.686) to H = 10 (1.800 ± 1.686)."
    )


def test_one_seed_is_said_to_be_one():
    assert trend("H")(sweep(1.8, 1.6, 1.5, spread=(0.0,))) == (
        "On one seed, the test loss falls as H grows, from H = 10 (1.800) to H = 50 (1.500)."
    )
    assert trend("H")(sweep(1.5, 1.5, 1.5, spread=(0.0,))).startswith("On one seed, H makes no difference, from ")


def test_what_diverged_is_named_and_not_averaged():
    found = trend("H")(measured(case("H = 10", 1.8, x=10), result("H = 30", 1.5, math.inf, 1.5, x=30)))
    assert found == "Over 3 seeds, only H = 10 (1.800 ± 0.017) can be judged; diverged: H = 30 (1 of 3)."
    assert trend("H")(measured(result("a", math.inf, x=1))) == "On one seed, no H can be judged; diverged: a (1 of 1)."


def test_each_case_is_told_against_the_reference_and_its_mirror():
    cases = case("fixed", 1.6), case("random", 1.61), case("model-diff", 1.4), case("five-round", 1.8)
    assert against("fixed")(measured(*cases)) == (
        "Over 3 seeds, against fixed (1.600 ± 0.017), lower: model-diff (1.400 ± 0.017); within the band: random "
        "(1.610 ± 0.017); higher: five-round (1.800 ± 0.017)."
    )
    mirrored = case("fixed", 1.6), case("model-diff", 1.8), case("five-round", 1.4)
    assert "lower: five-round (1.400 ± 0.017); higher: model-diff (1.800 ± 0.017)." in against("fixed")(
        measured(*mirrored)
    )


def test_against_what_diverged_nothing_is_said():
    assert against("a")(measured(result("a", math.inf), result("b", 1.0))) == (
        "On one seed, nothing can be said against a; diverged: a (1 of 1)."
    )


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (1.6, 1.4, "zo (1.600 ± 0.017) ends higher than sgd (1.400 ± 0.017)"),
        (1.4, 1.6, "zo (1.400 ± 0.017) ends lower than sgd (1.600 ± 0.017)"),
        (1.6, 1.61, "zo (1.600 ± 0.017) ends within the band of sgd (1.610 ± 0.017)"),
    ],
)
def test_a_pair_and_its_mirror(one, other, said):
    assert said in pairs(("zo", "sgd"))(measured(case("zo", one), case("sgd", other)))


def test_a_pair_is_told_with_what_a_common_loss_costs():
    found = pairs(("zo", "sgd"))(measured(case("zo", 1.6, cost=2.0), case("sgd", 1.4)))
    assert found.endswith("; to a test loss of 1.610, which all their runs reach, zo takes 2 x the FLOPs.")


def test_costs_whose_bands_overlap_are_within_the_band():
    """Rounds to a loss of 1: (1, 1) and (1, 2)."""
    fast = Result("zo", "", None, (run(3.0, 1.0), run(3.0, 1.0)))
    uneven = Result("sgd", "", None, (run(3.0, 1.0), run(3.0, 2.0, 1.0)))
    assert pairs(("zo", "sgd"))(measured(fast, uneven)).endswith(", zo takes 0.67 x the FLOPs, within the band.")


def test_computation_is_compared_seed_by_seed_at_the_lowest_loss_of_both():
    """Twice the cost a round; two rounds against four on one seed, one against three on the other."""
    split = Result("split", "", None, tuple(run(3.0, *rest, cost=2.0) for rest in ((2.0, 1.0), (1.0, 0.9))))
    whole = Result("whole", "", None, tuple(run(3.0, *rest) for rest in ((2.5, 2.0, 1.5, 1.0), (2.0, 1.5, 1.0))))
    found = computation("split")(measured(split, whole))
    assert found == (
        "Over 2 seeds, to the lowest test loss that all runs of both reach, split (0.950 ± 0.316) takes 0.833 ± 1.052 "
        "x the FLOPs (to 1.000) of whole (1.000 ± 0.000)."
    )
    assert savings("whole")(measured(split, whole)) == (
        "Over 2 seeds, beside whole (1.000 ± 0.000), to the lowest test loss that all runs of both reach, split (0.950 "
        "± 0.316) takes 0.833 ± 1.052 x the FLOPs (to 1.000) of it."
    )


def test_computation_against_a_case_that_never_moved_is_not_told_and_to_where_one_diverged_it_is():
    still, lost = Result("still", "", None, (run(3.0, 3.1, 3.2),)), result("lost", math.inf)
    found = computation("split")(measured(result("split", 1.0), still, lost))
    assert found.endswith("takes an unknown share of still (3.200), 1.000 x the FLOPs (to 2.500) of lost (diverged).")


def test_a_rate_at_the_edge_of_its_grid_is_told():
    tried = (run(3.0, 2.0, rate=0.1), run(3.0, 1.0, rate=0.3))
    edge = Result("zo", "", None, (tried[1],), tried)
    found = pairs(("zo", "sgd"))(measured(edge, result("sgd", 1.5)))
    assert found.startswith("On one seed, zo at rate 0.3, an edge of its grid (1.000) ends lower than sgd (1.500)")


def test_a_pair_that_diverged_is_not_compared():
    found = pairs(("zo", "sgd"))(measured(result("zo", 1.6), result("sgd", math.inf)))
    assert found == "On one seed, zo (1.600) cannot be compared with sgd (diverged)."


def surge(label: str, x: float, *rounds: int | None) -> Result:
    runs = tuple(run(*[2.0] * 40, surges=() if at is None else (at,)) for at in rounds)
    return Result(label, "", x, runs)


def test_surges_are_told_by_rate_and_round():
    found = findings.surges(measured(surge("eta = 1", 1, None), surge("eta = 3", 3, 30), surge("eta = 5", 5, 12)))
    assert found == (
        "On one seed, the training loss surged at eta = 3 (first in round 30), eta = 5 (first in round 12) and did not "
        "at eta = 1; earlier the larger the rate."
    )
    later = findings.surges(measured(surge("eta = 3", 3, 12), surge("eta = 5", 5, 30)))
    assert later.endswith("; not earlier at larger rates.")
    none = findings.surges(measured(surge("eta = 1", 1, None), surge("eta = 3", 3, None)))
    assert none == "On one seed, the training loss did not surge at eta = 1, eta = 3."
    crept = measured(Result("eta = 3", "", 3, (run(3.0, 4.0, 6.0),)))
    assert findings.surges(crept) == (
        "On one seed, the training loss did not surge at eta = 3 (yet it ended at 6.000, above its start)."
    )
    assert "eta = 3 (2 of 3 runs, first in round 10)" in findings.surges(measured(surge("eta = 3", 3, 8, None, 12)))


def test_ranks_are_told_with_the_bytes_of_both_uploads():
    cases = [
        case(
            f"rank {rank}, {upload}",
            loss,
            x=rank,
            series=f"{upload}, x",
            cost=rank if upload == "weights" else 1,
        )
        for upload in findings.UPLOADS
        for rank, loss in ((8, 1.6), (128, 1.4))
    ]
    assert findings.ranks(measured(*cases)) == (
        "Over 3 seeds, the test loss falls as the rank grows, from rank 8, scalars (1.600 ± 0.017) to rank 128, "
        "scalars (1.400 ± 0.017); a run sends up 100 bytes whatever the rank as scalars; a run sends up 800 "
        "(rank 8, weights) to 12,800 bytes (rank 128, weights) as weights."
    )


@pytest.mark.parametrize("name", [name for name, study in STUDIES.items() if not study.cases[0].measures])
def test_every_study_words_what_it_measures(name):
    """One sentence, whatever the losses are; another one where they are mirrored."""
    study = STUDIES[name]
    labels = [case.label.format(x=i) for i, case in enumerate(study.cases)]
    said = []
    for order in (1, -1):
        losses = [1.5 + order * 0.1 * i for i in range(len(labels))]
        results = [
            case(label, loss, x=i, series=one.series)
            for i, (label, loss, one) in enumerate(zip(labels, losses, study.cases, strict=True))
        ]
        said.append(study.finding(Measured(study, tuple(results), 3)))
    assert all(text.endswith(".") and "\n" not in text and text.count(". ") == 0 for text in said)
    assert said[0] != said[1] or name == "loss-surge"


def test_a_measured_rate_is_set_against_the_best_of_its_grid():
    """By shares of the way from 3.0; what cannot be known is not counted as near."""
    found = auto_against_best()(
        measured(
            result("a, best fixed", 2.0), result("a, auto", 2.04), result("b, best fixed", 2.0), result("b, auto", 1.5),
            result("c, best fixed", 2.0), result("c, auto", 2.2), result("d, best fixed", 3.5), result("d, auto", 2.0),
            result("e, best fixed", 2.0), result("e, auto", math.inf), result("f, auto", 1.0),
        )
    )  # fmt: skip
    assert found == (
        "On one seed, a measured rate comes within 5% of the best fixed one's way in 2 of 5 cases; it falls short by "
        "a: +4.0%; b: -50.0%; c: +20.0%; d: not known; e: not known; diverged: e, auto (1 of 1)."
    )
    assert auto_against_best()(measured(result("f, auto", 1.0))) == (
        "On one seed, no measured rate has a grid to be set against."
    )
