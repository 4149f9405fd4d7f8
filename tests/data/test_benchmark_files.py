"""The peers' tasks in the file formats in which they are published, a row or two of each."""

import json

import pytest

from seedtune.data.benchmarks import BENCHMARKS
from seedtune.data.tasks import load_task
from seedtune.errors import DataError
from seedtune.sections import TaskConfig

PASSAGE = "Ann met Bob.\n@highlight\nAnn is tall"
SNLI = {"sentence1": "A dog runs.", "sentence2": "An animal moves."}
MNLI_TSV = "index\tpromptID\tsentence1\tsentence2\tlabel1\tgold_label\n"

FILES = {
    "copa": {
        "train.jsonl": [
            {"premise": "It rained.", "choice1": "The street got wet.", "choice2": "I left.", "question": "effect",
             "idx": 0, "label": 0},
            {"premise": "Ann ran.", "choice1": "She was late.", "choice2": "She slept.", "question": "cause",
             "label": 1},
        ],
    },
    "record": {
        "train.jsonl": [
            {"source": "x", "passage": {"text": PASSAGE, "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}]},
             "qas": [{"query": "@placeholder smiled.", "answers": [{"start": 8, "end": 10, "text": "Bob"}]}]},
        ],
    },
    "multirc": {
        "train.jsonl": [
            {"idx": 0, "passage": {"text": "Ann came.", "questions": [
                {"question": "Who came?", "answers": [{"text": "Ann", "label": 1}, {"text": "Bob", "label": 0}]}]}},
        ],
    },
    "wsc": {
        "train.jsonl": [
            {"target": {"span1_text": "Ann", "span2_text": "She", "span1_index": 0, "span2_index": 3}, "label": True,
             "text": "Ann came late. She ran."},
        ],
    },
    "drop": {
        "drop_dataset_train.json": {
            "nfl_1": {"passage": "Two teams met.", "qa_pairs": [
                {"question": "How many?", "answer": {"number": "2", "date": {}, "spans": []},
                 "validated_answers": [{"number": "", "date": {}, "spans": ["two", "teams"]}]},
                {"question": "When?", "answer": {"number": "", "spans": [],
                                                 "date": {"day": "4", "month": "May", "year": ""}}},
            ]},
        },
    },
    "mnli": {
        "train.tsv": MNLI_TSV + "0\t1\tIt rains.\tIt is wet.\tx\tentailment\n1\t2\tIt rains.\tAnn ran.\tx\tneutral\n",
        "dev_matched.tsv": MNLI_TSV + "0\t1\tIt snows.\tIt is hot.\tx\tcontradiction\n",
        "dev_mismatched.tsv": MNLI_TSV + "0\t1\tOther genre.\tIt is hot.\tx\tneutral\n",
        "test_matched.tsv": "index\tpromptID\tsentence1\tsentence2\n0\t1\tIt snows.\tIt is hot.\n",
    },
    "snli": {
        "snli_1.0_train.jsonl": [SNLI | {"gold_label": "entailment"}, SNLI | {"gold_label": "-"}],
    },
    "qnli": {"train.tsv": "index\tquestion\tsentence\tlabel\n0\tWho came?\tAnn came.\tentailment\n"},
    "qqp": {"train.tsv": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tWho is it?\tWhat is it?\t0\n"},
    "mrpc": {"train.tsv": '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\tHe said "no.\tHe refused.\n'},
    "cola": {"train.tsv": "gj04\t1\t\tAnn came.\ngj04\t0\t*\tAnn come have.\n"},
    "trec": {"train.csv": "3,Who came ?\n5,How many came ?\n"},
    "mr": {"train.csv": '1,"fine , and short"\n0,dull\n'},
    "sst5": {"train.csv": "4,splendid\n0,awful\n"},
    "subj": {"train.csv": "0,i liked it\n1,ann leaves the town\n"},
    "cr": {"train.csv": "1,works well\n0,broke\n"},
    "mpqa": {"train.csv": "1,good deeds\n0,bad deeds\n"},
}  # fmt: skip

CAUSAL = {
    "copa": ("It rained so", " the street got wet.", 0),
    "record": ("Ann met Bob.\n- Ann is tall\n-", " Bob smiled.", 1),
    "multirc": ('Ann came.\nQuestion: Who came?\nI found this answer "Ann". Is that correct? Yes or No?\n', "Yes", 1),
    "wsc": (
        'Ann came late. She ran.\nIn the previous sentence, does the pronoun "she" refer to Ann? Yes or No?\n',
        "Yes", 1,
    ),
    "drop": ("Passage: Two teams met.\nQuestion: How many?\nAnswer:", " 2\n", None),
    "mnli": ('Suppose It rains. Can we infer that "It is wet."? Yes, No, or Maybe?\n', "Yes", 0),
    "snli": ('Suppose A dog runs. Can we infer that "An animal moves."? Yes, No, or Maybe?\n', "Yes", 0),
    "qnli": ('Ann came.\nDoes this answer the question "Who came?"? Yes or No?\n', "Yes", 0),
    "qqp": ("Who is it?\nWhat is it?\nDo these two questions mean the same? Yes or No?\n", "No", 0),
    "mrpc": ('He said "no.\nHe refused.\nDo these two sentences mean the same? Yes or No?\n', "Yes", 1),
    "cola": ("Ann came. This is", " correct", 1),
    "trec": ("Who came ?\nType:", " Human", 3),
    "mr": ("fine , and short It was", " great", 1),
    "sst5": ("splendid It was", " great", 4),
    "subj": ("i liked it This is", " subjective", 0),
    "cr": ("works well It was", " great", 1),
    "mpqa": ("good deeds It was", " great", 1),
}  # fmt: skip

MASKED = {
    "mnli": ("It rains? {mask}, it is wet.", " Yes"),
    "snli": ("A dog runs? {mask}, an animal moves.", " Yes"),
    "qnli": ("Who came? {mask}, ann came.", " Yes"),
    "qqp": ("Who is it?{mask}, what is it?", " No"),
    "mrpc": ('He said "no.{mask}, he refused.', " Yes"),
    "cola": ("Ann came. This is {mask}.", " correct"),
    "trec": ("{mask}: Who came ?", " Human"),
    "sst5": ("splendid It was {mask}.", " great"),
    "subj": ("i liked it This is {mask}.", " subjective"),
    "mpqa": ("good deeds It was {mask}.", " great"),
}


def write(folder, files):
    for name, content in files.items():
        lines = "".join(json.dumps(row) + "\n" for row in content) if isinstance(content, list) else content
        (folder / name).write_text(json.dumps(content) if isinstance(content, dict) else lines)
    return folder


def examples(folder, name, files, kind="causal"):
    """What of the files is in the task, training examples first."""
    task = load_task(TaskConfig(name=name, path=str(write(folder, files))), 0, kind, is_undivided=True)
    return task.train, task


@pytest.mark.parametrize("name", CAUSAL)
def test_a_published_file_gives_the_published_prompt(tmp_path, name):
    found, task = examples(tmp_path, name, FILES[name])
    assert (CAUSAL[name]) in [(example.prompt, example.answer, example.label) for example in found]
    assert task.kind == ("text" if name == "drop" else "choice")


@pytest.mark.parametrize("name", MASKED)
def test_a_masked_model_reads_it_as_lm_bffs_code_fills_it(tmp_path, name):
    found, _ = examples(tmp_path, name, FILES[name], "masked")
    assert MASKED[name] in [(example.prompt, example.answer) for example in found]


def test_the_hubs_flat_rows_give_the_same_as_the_nested_ones(tmp_path):
    flat = {
        "record": [
            {"passage": PASSAGE, "query": "@placeholder smiled.", "entities": ["Ann", "Bob"], "answers": ["Bob"]}
        ],
        "multirc": [{"paragraph": "Ann came.", "question": "Who came?", "answer": answer, "label": label}
                    for answer, label in (("Ann", 1), ("Bob", 0))],
        "wsc": [{"text": "Ann came late. She ran.", "span1_text": "Ann", "span2_text": "She", "label": 1}],
        "drop": [
            {"passage": "Two teams met.", "question": question, "answers_spans": {"spans": spans}}
            for question, spans in (("How many?", ["2", "two", "teams"]), ("When?", ["4 May"]))
        ],
    }  # fmt: skip
    for name, rows in flat.items():
        for folder in ("flat", "nested"):
            (tmp_path / name / folder).mkdir(parents=True)
        by_hub, _ = examples(tmp_path / name / "flat", name, {"train.jsonl": rows})
        nested, _ = examples(tmp_path / name / "nested", name, FILES[name])
        assert set(by_hub) == set(nested)


def test_every_answer_of_drop_is_a_reference(tmp_path):
    found, _ = examples(tmp_path, "drop", FILES["drop"])
    assert {example.references for example in found} == {("2", "two", "teams"), ("4 May",)}


def test_choices_are_each_rows_own(tmp_path):
    found, task = examples(tmp_path, "copa", FILES["copa"])
    assert {example.choices for example in found} == {
        (" the street got wet.", " I left."), (" she was late.", " she slept."),
    }  # fmt: skip
    assert task.answers == task.label_names == ()


def test_every_accepted_name_of_record_is_right(tmp_path):
    row = {"passage": "A", "query": "@placeholder.", "entities": ["Ann", "Bob", "Ann B."], "answers": ["Ann", "Ann B."]}
    (found, *_), _ = examples(tmp_path, "record", {"train.jsonl": [row]})
    assert (found.label, found.accepted) == (0, (2,))


def test_snlis_rows_without_agreement_and_tests_without_labels_are_left_out(tmp_path):
    _, task = examples(tmp_path, "snli", FILES["snli"])
    assert [row.reason for row in task.left_out] == ["without a label"] and len(task.train) == 1


def test_mnli_is_tested_on_the_matched_rows(tmp_path):
    task = load_task(TaskConfig(name="mnli", path=str(write(tmp_path, FILES["mnli"]))), 0)
    assert len(task.train) == 2 and [example.body for example in task.test] == ["It snows."]


def test_a_labelled_test_file_is_what_is_tested_on(tmp_path):
    """LM-BFF's folders of k shots: train, dev, and a thousand labelled test rows."""
    tsv = "sentence\tlabel\n{} film\t1\n"
    files = {f"{name}.tsv": tsv.format(name) for name in ("train", "dev", "test")}
    task = load_task(TaskConfig(name="sst2", path=str(write(tmp_path, files))), 0)
    assert [example.body for example in (*task.train, *task.test)] == ["train film", "test film"]


def test_fewglues_small_development_set_is_not_validation(tmp_path):
    row = {"premise": "It rains.", "hypothesis": "It is wet.", "label": "entailment"}
    names = ("train", "dev32", "val", "unlabeled")
    files = {f"{name}.jsonl": [row | {"premise": f"{name}."}] for name in names}
    task = load_task(TaskConfig(name="rte", path=str(write(tmp_path, files))), 0)
    assert [example.body for example in (*task.train, *task.test)] == ["train.", "val."]


@pytest.mark.parametrize(
    "row, label",
    [
        ({"text": "Who came ?", "coarse_label": 3, "fine_label": 1}, 3),
        ({"text": "What is an atom ?", "coarse_label": 2, "fine_label": 1}, 0),
    ],
)
def test_trecs_classes_have_other_numbers_on_the_hub(tmp_path, row, label):
    (found, *_), _ = examples(tmp_path, "trec", {"train.jsonl": [row]})
    assert found.label == label


def test_subjs_classes_go_by_their_names_where_there_are_any(tmp_path):
    (found, *_), _ = examples(tmp_path, "subj", {"a.jsonl": [{"text": "fine", "label": 1, "label_text": "subjective"}]})
    assert found.label == 0


def test_a_task_without_a_hub_asks_for_files():
    with pytest.raises(DataError) as error:
        load_task(TaskConfig(name="mpqa"), 0)
    assert str(error.value) == "task 'mpqa' has no data set on the hub: set task.path to a folder with its files"


@pytest.mark.parametrize(
    "name, row, message",
    [
        ("record", {"passage": {"text": "A"}, "qas": []},
         "row 1: is nested as the benchmark's own files are, but 'entities' is missing or of the wrong type: mend it "
         "or leave it out"),
        ("copa", {"premise": "It rained.", "choice1": "a", "choice2": "b", "question": "why", "label": 0},
         "COPA asks for a cause or an effect, but a row has the question 'why': mend it"),
    ],
)  # fmt: skip
def test_a_damaged_row_is_named(tmp_path, name, row, message):
    with pytest.raises(DataError) as error:
        examples(tmp_path, name, {"train.jsonl": [row]})
    assert str(error.value).endswith(message)


def test_rows_without_a_right_choice_are_left_out(tmp_path):
    rows = FILES["copa"]["train.jsonl"]
    _, task = examples(tmp_path, "copa", {"train.jsonl": [*rows, rows[0] | {"label": -1}, rows[0] | {"choice2": " "}]})
    assert [row.reason for row in task.left_out] == ["without a label", "without two choices"]


def test_every_task_has_a_line_in_the_list_of_tasks():
    from seedtune.data.listing import list_tasks

    assert BENCHMARKS.keys() <= {listed.name for listed in list_tasks()}
