import pytest

from seedtune.data.metrics import exact_match, normalised, token_f1


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("The Cat.", "cat"), ("an  apple,a pear", "applea pear"), ("a.b", "ab"), ("Theory", "theory"), ("", "")],
)
def test_normalised(answer, expected):
    assert normalised(answer) == expected


def test_exact_match_takes_any_reference():
    assert exact_match("the Eiffel Tower\n", ["Paris", "Eiffel tower"]) == 1.0
    assert exact_match("Eiffel", ["Paris", "Eiffel tower"]) == 0.0


def test_f1_counts_words_with_their_number():
    assert token_f1("paris paris", ["paris"]) == pytest.approx(2 / 3)
    assert token_f1("rome", ["paris"]) == 0.0
    assert token_f1("paris", []) == 0.0
    assert token_f1("city of light", ["rome", "the city of light"]) == 1.0
