"""Benchmarks and users' tables, on files of a few rows in the layouts that their authors publish."""

import json
import sys
from types import SimpleNamespace

import pytest

from seedtune.data.benchmarks import BENCHMARKS
from seedtune.data.tasks import load_task
from seedtune.errors import DataError
from seedtune.sections import TaskConfig

ROWS = {
    "sst2": [{"sentence": "a fine film ", "label": 1}, {"sentence": "a dull film", "label": 0}],
    "rte": [
        {"premise": "It rains.", "hypothesis": "It is wet.", "label": "entailment", "idx": 0},
        {"premise": "It rains.", "hypothesis": "It is dry.", "label": "not_entailment", "idx": 1},
    ],
    "cb": [
        {"premise": "It rains.", "hypothesis": "It is wet", "label": label}
        for label in ("entailment", "contradiction", "neutral")
    ],
    "boolq": [
        {"passage": "Rain is water.", "question": "is rain water", "label": True},
        {"passage": "Rain is water.", "question": "is rain dry?", "label": False},
    ],
    "wic": [
        {"word": "bank", "sentence1": "A river bank.", "sentence2": "A money bank.", "label": False},
        {"word": "bank", "sentence1": "A river bank.", "sentence2": "The bank was steep.", "label": True},
    ],
    "ag_news": [{"text": "A war ended.", "label": 0}, {"text": "A chip was made.", "label": "3"}],
    "squad": [
        {"title": "Ann", "context": "Ann came.", "question": "Who?", "answers": {"text": ["Ann", "Ann"]}},
        {"title": "Bob", "context": "Bob left.", "question": "Who?", "answers": {"text": ["Bob", "he"]}},
    ],
}

PROMPTS = {
    "sst2": ("a fine film It was", " great"),
    "rte": ('It rains.\nDoes this mean that "It is wet." is true? Yes or No?\n', "Yes"),
    "cb": ('Suppose It rains. Can we infer that "It is wet"? Yes, No, or Maybe?\n', "Yes"),
    "boolq": ("Rain is water. Is rain water?\n", "Yes"),
    "wic": (
        'Does the word "bank" have the same meaning in these two sentences? Yes, No?\nA river bank.\nA money bank.\n',
        "No",
    ),
    "ag_news": ("A war ended.\nThis news is about", " world"),
    "squad": ("Title: Ann\nContext: Ann came.\nQuestion: Who?\nAnswer:", " Ann\n"),
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(folder, name, kind="causal", **settings):
    return load_task(TaskConfig(name=name, path=str(folder), **settings), 0, kind)


@pytest.fixture
def folder(tmp_path):
    """train and val of `name`, and an unlabelled test file as GLUE has it."""

    def make(name):
        write(tmp_path / "train.jsonl", ROWS[name])
        write(tmp_path / "val.jsonl", ROWS[name])
        write(tmp_path / "test.jsonl", [{"sentence": "no label here"}])
        return tmp_path

    return make


@pytest.mark.parametrize("name", ROWS)
def test_the_published_prompt(folder, name):
    task = load(folder(name), name)
    assert (task.train[0].prompt, task.train[0].answer) == PROMPTS[name]
    assert task.test == task.train and len(task.train) == len(ROWS[name])
    assert [e.label for e in task.train] == {
        "sst2": [1, 0], "rte": [0, 1], "cb": [0, 1, 2], "boolq": [1, 0], "wic": [0, 1], "ag_news": [0, 3],
        "squad": [None, None],
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", [name for name, benchmark in BENCHMARKS.items() if benchmark.labels])
def test_labels_answers_and_descriptions_have_one_text_a_label(name):
    benchmark = BENCHMARKS[name]
    counts = {len(form.answers) for kind, form in benchmark.forms.items() if kind != "classifier"}
    assert counts == {len(benchmark.labels)} == {len(benchmark.descriptions)}


@pytest.mark.parametrize(
    ("name", "prompt", "answer"),
    [
        ("sst2", "a fine film It was {mask}.", " great"),
        ("rte", "It rains? {mask}, it is wet.", " Yes"),
        ("cb", "It rains? {mask}, it is wet", " Yes"),
        ("ag_news", "A war ended.\nThis news is about {mask}.", " world"),
    ],
)
def test_the_masked_form(folder, name, prompt, answer):
    example = load(folder(name), name, "masked").train[0]
    assert (example.prompt, example.answer) == (prompt, answer)


@pytest.mark.parametrize(
    ("name", "prompt"),
    [("sst2", "a fine film"), ("rte", "It rains.\nIt is wet."), ("boolq", "Rain is water.\nIs rain water?")],
)
def test_a_classifier_reads_the_texts_alone(folder, name, prompt):
    task = load(folder(name), name, "classifier")
    assert task.train[0].prompt == prompt and task.answers == () and len(task.label_names) == 2


def test_a_benchmark_without_a_form_for_the_model_says_which_it_has(folder):
    with pytest.raises(DataError) as error:
        load(folder("boolq"), "boolq", "masked")
    assert str(error.value) == (
        "task 'boolq' has no prompt for a masked model, only for: causal, classifier; choose another model.kind, or "
        "write the prompt yourself with task.name = 'custom'"
    )


def test_squad_keeps_all_references_and_groups_by_title(folder):
    task = load(folder("squad"), "squad")
    assert task.kind == "text" and not task.ends
    assert [e.references for e in task.train] == [("Ann",), ("Bob", "he")]
    assert [e.group for e in task.train] == ["Ann", "Bob"]
    assert (task.train[0].head, task.train[0].body) == ("Title: Ann\nContext: ", "Ann came.")


def test_glues_tsv(tmp_path):
    header = "index\tsentence1\tsentence2\tlabel\n"
    (tmp_path / "train.tsv").write_text(header + '0\tHe said "no.\tHe spoke.\tentailment\n')
    (tmp_path / "dev.tsv").write_text(header + "0\tIt rains.\tIt is dry.\tnot_entailment\n")
    task = load(tmp_path, "rte")
    assert task.train[0].prompt.startswith('He said "no.\nDoes') and task.test[0].label == 1


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("train.csv", '"1","War","A war ended."\n"4","Chip","A ""chip"" was made."\n'),
        ("train.csv", 'Class Index,Title,Description\n1,War,A war ended.\n4,Chip,"A ""chip"" was made."\n'),
        ("train.tsv", 'War A war ended.\tWorld\nChip A "chip" was made.\tSci/Tech\n'),
        (
            "train.jsonl",
            '{"text": "War A war ended.", "label": 0}\n{"text": "Chip A \\"chip\\" was made.", "label": 3}',
        ),
    ],
)
def test_ag_news_in_all_its_layouts(tmp_path, file, text):
    (tmp_path / file).write_text(text)
    (tmp_path / file.replace("train", "test")).write_text(text)
    task = load(tmp_path, "ag_news")
    assert [(e.body, e.label) for e in task.train] == [("War A war ended.", 0), ('Chip A "chip" was made.', 3)]


def test_labels_that_are_unknown_or_missing_are_named(tmp_path):
    write(tmp_path / "train.jsonl", [*ROWS["sst2"], {"sentence": "x", "label": 2}])
    with pytest.raises(DataError) as error:
        load(tmp_path, "sst2")
    assert str(error.value) == (
        "task 'sst2', train row 3: its label is '2', expected 0 or negative; 1 or positive; mend it or leave the "
        "row out"
    )
    write(tmp_path / "train.jsonl", [{"sentence": "x"}])
    with pytest.raises(DataError, match=r"^task 'sst2', train row 1: has no column 'label', only sentence$"):
        load(tmp_path, "sst2")
    write(tmp_path / "train.jsonl", [{"review": "x", "label": 1}])
    with pytest.raises(DataError, match=r"^task 'sst2', train row 1: has no column 'sentence', only review, label$"):
        load(tmp_path, "sst2")
    write(tmp_path / "train.jsonl", [ROWS["squad"][0] | {"answers": {"text": "Ann"}}])
    with pytest.raises(DataError) as error:
        load(tmp_path, "squad")
    assert str(error.value) == (
        "task 'squad', train row 1: needs \"answers\": {\"text\": [answers]}, but has {'text': 'Ann'}"
    )


# The hub


def test_without_a_path_the_hub_is_asked(monkeypatch):
    asked = []

    def load_dataset(path, name, split):
        asked.append((path, name, split))
        return ROWS["boolq"]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    task = load_task(TaskConfig(name="boolq"), 0)
    assert asked == [("aps/super_glue", "boolq", "train"), ("aps/super_glue", "boolq", "validation")]
    assert task.train[0].prompt == PROMPTS["boolq"][0]


def test_a_hub_that_cannot_be_reached_tells_how_to_do_without(monkeypatch):
    def load_dataset(path, name, split):
        raise ConnectionError("Couldn't reach 'nyu-mll/glue' on the Hub\nmore lines")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DataError) as error:
        load_task(TaskConfig(name="sst2"), 0)
    assert str(error.value) == (
        "task 'sst2' could not be loaded from the hub as 'nyu-mll/glue': Couldn't reach 'nyu-mll/glue' on the Hub; set "
        "task.path to a folder with its files (csv, tsv, json, jsonl or parquet)"
    )


# Users' own tables


REVIEWS = [{"text": f"review {i} of many", "stars": str(i % 3), "shop": "ab"[i % 2]} for i in range(40)]
STARS = {"0": " bad", "1": " fine", "2": " great"}


def custom(tmp_path, model_kind="causal", rows=REVIEWS, **settings):
    settings = {"template": "{text} It was", "label_column": "stars", "answers": STARS} | settings
    path = write(tmp_path / "reviews.jsonl", rows)
    return load_task(TaskConfig(**{"name": "custom", "path": str(path)} | settings), 0, model_kind)


def test_a_custom_choice(tmp_path):
    task = custom(tmp_path, group_column="shop")
    assert task.answers == tuple(STARS.values()) and task.label_names == tuple(STARS)
    assert len(task.train) + len(task.test) == 40 and 2 <= len(task.test) <= 16
    assert {(e.answer, e.label) for e in task.train} == {(" bad", 0), (" fine", 1), (" great", 2)}
    assert {e.group for e in task.train} == {"a", "b"} and task.train[0].tail == " It was"


def test_a_custom_test_file_is_taken_whole(tmp_path):
    tests = write(tmp_path / "more.jsonl", REVIEWS[:3])
    task = custom(tmp_path, test_path=str(tests))
    assert (len(task.train), len(task.test)) == (40, 3)


def test_a_custom_text(tmp_path):
    task = custom(tmp_path, kind="text", template="{text}\n", answer="{stars} stars", label_column=None, answers={})
    assert task.kind == "text" and task.ends and task.label_names == ()
    assert ("review 1 of many\n", "1 stars") in {(e.prompt, e.answer) for e in (*task.train, *task.test)}


def test_a_custom_classifier_takes_the_labels_as_they_are(tmp_path):
    task = custom(tmp_path, "classifier", template="{text}", answers={})
    assert task.label_names == ("0", "1", "2") and task.answers == ()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": None}, "a 'custom' task of kind 'choice' for a causal model needs task.path: set it"),
        ({"template": None}, "a 'custom' task of kind 'choice' for a causal model needs task.template: set it"),
        ({"label_column": None}, "a 'custom' task of kind 'choice' for a causal model needs task.label_column: set it"),
        ({"answers": {}}, "a 'custom' task of kind 'choice' for a causal model needs task.answers: set it"),
        ({"kind": "text"}, "a 'custom' task of kind 'text' for a causal model needs task.answer: set it"),
        (
            {"label_column": "star"},
            "task.label_column is 'star', but task 'custom', data has the columns text, stars, shop",
        ),
        (
            {"group_column": "town"},
            "task.group_column is 'town', but task 'custom', data has the columns text, stars, shop",
        ),
        (
            {"template": "{txt} It was"},
            "template '{txt} It was' names the column 'txt', which task 'custom', data does not have: it has text, "
            "stars, shop; write braces that are text as {{ and }}",
        ),
        (
            {"answers": {"0": " bad", "1": " fine"}},
            "task 'custom', data row 3: its stars is '2', which has no answer word: task.answers has words for 0, 1; "
            "add one for each label, or mend the row",
        ),
        (
            {"template": "{text} {mask}"},
            "task.template '{text} {mask}' must have {mask} for a masked model and only there, but model.kind is "
            "'causal'",
        ),
    ],
)
def test_custom_settings_that_cannot_be_used(tmp_path, settings, message):
    with pytest.raises(DataError) as error:
        custom(tmp_path, **settings)
    assert str(error.value) == message


def test_custom_rows_that_cannot_be_used(tmp_path):
    with pytest.raises(
        DataError, match=r"^task 'custom', data row 41: column 'text' is \['x'\], expected a text or a n"
    ):
        custom(tmp_path, rows=[*REVIEWS, {"text": ["x"], "stars": "1"}])
    with pytest.raises(DataError, match=r"^column 'stars' has the one label '0': a choice needs two or more$"):
        custom(tmp_path, "classifier", rows=[r | {"stars": "0"} for r in REVIEWS], template="{text}", answers={})
