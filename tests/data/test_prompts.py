import pytest

from seedtune.data.prompts import check_columns, columns_of, fill
from seedtune.errors import DataError


def test_the_named_column_is_the_body():
    row = {"premise": "it rains", "hypothesis": "it is wet outside today"}
    assert fill("{premise}? {mask}, {hypothesis}", row, "premise") == (
        "",
        "it rains",
        "? {mask}, it is wet outside today",
    )


def test_without_a_name_the_longest_value_is_the_body():
    assert fill("Q: {q}\nC: {c}\nA:", {"q": "who", "c": "a long text"}) == ("Q: who\nC: ", "a long text", "\nA:")


def test_a_template_without_columns_is_all_tail():
    assert fill("Once", {}) == ("", "", "Once")


def test_double_braces_are_text_and_braces_in_values_stay():
    head, body, tail = fill("f() {{ {code} }}", {"code": "return {x};"})
    assert head + body + tail == "f() { return {x}; }"


def test_columns_are_named_once_and_the_mask_is_none():
    assert columns_of("{a} {mask} {b} {a}") == ("a", "b")


def test_a_missing_column_is_named_with_those_that_exist():
    with pytest.raises(DataError) as error:
        check_columns("{text} {lable}", ["text", "label"], "reviews.csv")
    assert str(error.value) == (
        "template '{text} {lable}' names the column 'lable', which reviews.csv does not have: it has text, label; "
        "write braces that are text as {{ and }}"
    )
