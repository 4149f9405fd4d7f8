import pytest

from seedtune.data import stdlib
from seedtune.data.encoding import encode
from seedtune.data.tasks import KNOWN, load_task
from seedtune.errors import DataError
from seedtune.sections import TaskConfig


def test_stdlib_topics_put_the_masked_docstring_in_the_starters_form():
    task = load_task(TaskConfig(), 0)
    assert task.answers == tuple(f" {package}" for package in stdlib.HELD_BACK) and task.max_tokens == 72
    assert len(task.label_descriptions) == len(task.label_names) == 8
    docs = [d for d in stdlib.held_back_docstrings() if stdlib.stable_fraction(d.text) >= 0.2]
    assert [e.prompt for e in task.train] == [stdlib.FORM.format(text=stdlib.masked(d)) for d in docs]
    assert all(e.answer == f" {e.group}" == task.answers[e.label] for e in task.train)
    assert {e.tail for e in task.train} == {"\nThis text documents the package"}


def test_a_fifth_of_the_texts_is_for_testing_whatever_the_key():
    one, two = load_task(TaskConfig(), 1), load_task(TaskConfig(), 2)
    assert one == two
    assert 0.15 < len(one.test) / (len(one.test) + len(one.train)) < 0.25


def test_the_held_back_docstrings_are_those_of_the_library(monkeypatch):
    kept = (*stdlib.HELD_BACK, "argparse", "zipfile")
    paths = [path for path in stdlib._module_paths() if stdlib.package_of(path) in kept]
    monkeypatch.setattr(stdlib, "_module_paths", lambda: paths)
    monkeypatch.setattr(stdlib, "source_files", stdlib.source_files.__wrapped__)
    everything = stdlib.docstrings.__wrapped__()
    assert {d.package for d in everything} == set(kept)
    assert [d for d in everything if d.package in stdlib.HELD_BACK] == list(stdlib.held_back_docstrings())


def test_limits_choose_by_key_and_keep_the_order():
    every = load_task(TaskConfig(), 1).train
    one, same, other = (load_task(TaskConfig(max_train=50, max_eval=20), key) for key in (1, 1, 2))
    assert one == same and one.train != other.train
    assert (len(one.train), len(one.test)) == (50, 20)
    places = [every.index(e) for e in one.train]
    assert places == sorted(places)


def test_shots_keep_so_many_of_each_class(tmp_path):
    every, few = load_task(TaskConfig(), 1), load_task(TaskConfig(shots=7), 1)
    assert [sum(e.label == label for e in few.train) for label in range(8)] == [7] * 8
    places = [every.train.index(e) for e in few.train]
    assert places == sorted(places) and few.test == every.test
    assert load_task(TaskConfig(shots=7), 2).train != few.train
    with pytest.raises(DataError) as error:
        load_task(TaskConfig(name="stdlib-text", shots=7), 1)
    assert str(error.value) == (
        "task.shots = 7: counts examples of a class, and task 'stdlib-text' has no classes: use task.max_train"
    )


def test_max_tokens_of_the_recipe_wins():
    assert load_task(TaskConfig(max_tokens=40), 0).max_tokens == 40


@pytest.mark.parametrize("kind", ["masked", "classifier"])
def test_stdlib_topics_for_other_models(kind):
    task = load_task(TaskConfig(), 0, kind)
    assert task.train[0].tail == {"masked": "\nThis text documents the package {mask}.", "classifier": ""}[kind]
    assert len(task.answers) == {"masked": 8, "classifier": 0}[kind]


def test_stdlib_text_learns_all_of_a_docstring(bpe):
    task = load_task(TaskConfig(name="stdlib-text", max_train=5), 0)
    assert task.kind == "text" and task.answers == () and {e.prompt for e in task.train} == {""}
    example = encode(task, task.train, bpe, "causal").examples[0]
    assert bpe.decode(example.answer).startswith(task.train[0].answer[:20])


def test_an_installation_without_sources_is_named(monkeypatch):
    monkeypatch.setattr(stdlib, "held_back_docstrings", lambda: ())
    with pytest.raises(DataError) as error:
        load_task(TaskConfig(), 0)
    assert str(error.value) == (
        "this Python was installed without the sources of its standard library: choose another task"
    )


def test_an_unknown_task_is_named_with_its_neighbour():
    with pytest.raises(DataError) as error:
        load_task(TaskConfig(name="sst-2"), 0)
    assert str(error.value).startswith("unknown task 'sst-2': did you mean 'sst2'? Known: ag_news, boolq, cb, cola, ")


def test_a_setting_that_a_task_does_not_use_is_an_error():
    with pytest.raises(DataError) as error:
        load_task(TaskConfig(name="sst2", template="{sentence} ?"), 0)
    assert str(error.value) == (
        "task.template is set, but task 'sst2' does not use it: leave it out, or choose task.name = 'custom'"
    )


def test_a_task_to_write_text_needs_a_causal_model():
    with pytest.raises(DataError) as error:
        load_task(TaskConfig(name="stdlib-text"), 0, "masked")
    assert str(error.value) == (
        "task 'stdlib-text' is to write text, which a masked model cannot: choose model.kind = 'causal'"
    )


def test_a_split_without_examples_is_an_error(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"sentence": "x", "label": 1}\n')
    with pytest.raises(DataError, match=r"^task 'sst2' has no (test|train) examples: give it files with more rows$"):
        load_task(TaskConfig(name="sst2", path=str(tmp_path)), 0)
    (tmp_path / "dev.jsonl").write_text('{"sentence": "x", "label": -1}\n' * 2)
    with pytest.raises(DataError) as error:
        load_task(TaskConfig(name="sst2", path=str(tmp_path)), 0)
    assert str(error.value).endswith(
        " examples: 2 rows were left out, the first of them task 'sst2', validation row 1, without a label; mend them "
        "or give it files with more rows"
    )


def test_tasks_without_data_of_their_own_ask_for_a_path():
    for name in ("instruction", "prompt-completion", "plain-text"):
        with pytest.raises(DataError) as error:
            load_task(TaskConfig(name=name), 0)
        assert str(error.value) == f"task {name!r} has no data of its own: set task.path to a file or folder"


def test_the_known_tasks():
    assert set(KNOWN) == {
        "stdlib-topics", "stdlib-text", "rated-snippets", "sst2", "rte", "cb", "boolq", "wic", "ag_news", "squad",
        "copa", "record", "multirc", "wsc", "drop", "mnli", "snli", "qnli", "qqp", "mrpc", "cola", "trec", "mr", "sst5",
        "subj", "cr", "mpqa", "instruction", "prompt-completion", "plain-text", "custom",
    }  # fmt: skip
