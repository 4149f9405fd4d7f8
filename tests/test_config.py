import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from seedtune.config import Machine, Recipe
from seedtune.errors import ConfigError
from seedtune.recipe_text import assignment, build, build_json, clients_of, merged, read_toml

VOTE = {"federation": {"aggregation": "sign-vote", "keys": "shared", "weighting": "equal"}}
SPLIT = {"local": {"estimator": "split"}}
LEAVE_ONE_OUT = (
    "split.baseline = 'leave-one-out' needs split.reading = 'nested' and split.num_suffix_directions of at least 2: it "
    "takes away what directions of block 2 share through one direction of block 1"
)


def refused(**values) -> str:
    with pytest.raises(ConfigError) as error:
        build(values, "mine.toml")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_an_empty_recipe_is_all_defaults():
    assert build({}) == Recipe()


def test_a_recipe_survives_json():
    recipe = build({"model": {"lora_targets": ["q", "v"]}, "task": {"answers": {"0": " no"}}, "run": {"seed": 5}})
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_a_recipe_does_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        build({}).run.seed = 3
    with pytest.raises(ValidationError, match="greater than or equal"):
        Machine(scratch_bytes=1)


CLIP = (
    "local.clip needs local.order = 'zeroth' and another federation.aggregation than 'sign-vote': it cuts projected "
    "gradients, and a vote is none"
)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"locals": {}}, "unknown section 'locals': did you mean 'local'? Known: auto, baseline, byzantine, "
                         "federation, local, model, partition, personalise, privacy, run, secure_sum, split, "
                         "task"),
        ({"run": {"sed": 1}}, "unknown key 'sed': did you mean 'seed'? Known: eval_every, keep_snapshots, method, "
                              "num_threads, on_surge, patience, seed (in [run])"),
        ({"model": 3}, "model = 3: must be a table of settings"),
        ({"model": {"trainable": "*"}}, "model.trainable = '*': must be a list, such as ['first', 'second']"),
        ({"task": {"answers": 3}}, "task.answers = 3: must be a table, such as {first = 'one', second = 'two'}"),
        ({"run": {"seed": "x"}}, "run.seed = 'x': must be a whole number, without quotes"),
        ({"federation": {"local_steps": 0}}, "federation.local_steps = 0: input should be greater than or equal to 1"),
        ({"local": {"learning_rate": math.inf}}, "local.learning_rate = inf: give a number greater than 0 and at most "
                                                 "1e+06, or 'auto'"),
        ({"model": {"dtype": "int8"}}, "model.dtype = 'int8': input should be 'float32', 'bfloat16' or 'float16'"),
        ({"federation": {"cohort_size": 99}}, "federation.cohort_size is 99 but partition.num_clients is 8: a cohort "
                                              "cannot be larger than the federation"),
        ({"federation": {"cohort_size": 2, "min_replies": 3}}, "federation.min_replies is 3 but a round asks 2 "
                                                               "clients"),
        ({"local": {"order": "first"}}, "local.order = 'first' needs federation.upload = 'weights': a gradient is "
                                        "not a handful of scalars"),
        ({"federation": {"local_epochs": 1}}, "federation.local_epochs needs federation.upload = 'weights': clients "
                                              "with unlike numbers of examples would send unlike numbers of scalars"),
        ({"personalise": {"policy": "random", "alpha": 1.0}}, "personalise.alpha is 1 (relative), which lets a "
                                                              "client's learning rate fall to 0: it must be less "
                                                              "than 1"),
        ({"personalise": {"policy": "random", "alpha": 5e-4, "alpha_unit": "absolute"}},
         "personalise.alpha is 0.0005 (absolute), which lets a client's learning rate fall to 0: it must be less than "
         "0.0001"),
        ({"federation": {"key_pool": 4, "upload": "weights"}}, "federation.key_pool needs federation.upload = "
                                                               "'scalars'"),
        ({"federation": {"aggregation": "sign-vote"}},
         "federation.aggregation = 'sign-vote' needs federation.keys = 'shared': scalars can be set against one "
         "another only where all clients try the same directions"),
        ({"federation": {"aggregation": "median", "keys": "shared"}},
         "federation.aggregation = 'median' needs federation.weighting = 'equal': how many examples a client has is "
         "its own claim"),
        ({"federation": {"aggregation": "sign-vote", "keys": "shared"}},
         "federation.aggregation = 'sign-vote' needs federation.weighting = 'equal': how many examples a client has is "
         "its own claim"),
        ({"local": {"weight_decay": 0.1}},
         "local.weight_decay needs local.order = 'first': what moves weights in forward-only steps is scalars times "
         "directions"),
        ({"federation": {"trimmed_fraction": 0.5}}, "federation.trimmed_fraction = 0.5: input should be less than 0.5"),
        ({"federation": {"upload": "weights"}, "byzantine": {"num_clients": 1}},
         "byzantine.num_clients needs federation.upload = 'scalars': what is falsified are scalars"),
        ({"byzantine": {"num_clients": 9}}, "byzantine.num_clients is 9 but partition.num_clients is 8"),
        (VOTE | {"personalise": {"policy": "random"}},
         "federation.aggregation = 'sign-vote' needs personalise.policy = 'fixed': a vote has no learning rate"),
        (VOTE | {"local": {"clip": 1.0}}, CLIP),
        ({"federation": {"upload": "weights"}, "local": {"order": "first", "clip": 1.0}}, CLIP),
        ({"local": {"clip": -1.0}}, "local.clip = -1.0: input should be greater than or equal to 0"),
        ({"local": {"estimator": "split", "num_directions": 4}},
         "local.num_directions is 4 but local.estimator = 'split' takes its directions from "
         "split.num_prefix_directions and split.num_suffix_directions: set it to 1"),
        (SPLIT | {"split": {"num_prefix_directions": 1_000, "num_suffix_directions": 101}},
         "[split] asks for 101000 directions a step: at most 100000"),
        (SPLIT | {"federation": {"aggregation": "sign-vote", "keys": "shared", "weighting": "equal"}},
         "federation.aggregation = 'sign-vote' needs local.estimator = 'two-point' or 'one-sided': the sign of what "
         "both blocks did is not the sign of one"),
        (SPLIT | {"split": {"baseline": "leave-one-out"}}, LEAVE_ONE_OUT),
        (SPLIT | {"split": {"baseline": "leave-one-out", "reading": "clean-prefix", "num_suffix_directions": 4}},
         LEAVE_ONE_OUT),
        ({"split": {"rate_ratio": 0}}, "split.rate_ratio = 0: input should be greater than 0"),
        ({"federation": {"keys": "shared", "upload": "weights"}}, "federation.keys = 'shared' needs "
                                                                    "federation.upload = 'scalars'"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_refused_in_one_line(values, message):
    assert refused(**values) == f"mine.toml: {message}"


def test_scalars_of_a_step_are_counted_by_the_estimator_in_use():
    blocks = {"num_prefix_directions": 2, "num_suffix_directions": 5}
    assert build({"local": {"num_directions": 3}, "split": blocks}).num_scalars == 3
    assert build(SPLIT | {"split": blocks}).num_scalars == 10
    assert build(SPLIT | {"split": {**blocks, "reading": "clean-prefix"}}).num_scalars == 7


def test_every_field_says_its_range_and_every_section_is_checked():
    for name, section in Recipe.model_fields.items():
        assert refused(**{name: {"no_such_key": 1}}).startswith("mine.toml: unknown key 'no_such_key': ")
        assert section.annotation() == getattr(Recipe(), name)


def test_sections_are_merged_and_answers_replaced():
    base = {"task": {"answers": {"a": "1", "b": "2"}, "path": "x"}, "run": {"seed": 1}}
    over = {"task": {"answers": {"c": "3"}}, "local": {"num_directions": 2}}
    assert merged(base, over) == {
        "task": {"answers": {"c": "3"}, "path": "x"}, "run": {"seed": 1}, "local": {"num_directions": 2},
    }  # fmt: skip
    assert base["task"]["answers"] == {"a": "1", "b": "2"}


@pytest.mark.parametrize(
    "text, value",
    [
        ("local.learning_rate=3e-4", 3e-4), ("task.template={thing} = {x}", "{thing} = {x}"), ("run.seed = 3", 3),
        ("model.lora_targets=['q', 'v']", ["q", "v"]), ("task.path=a b.csv", "a b.csv"), ("run.method=", ""),
        ("task.answers={a = ' b'}", {"a": " b"}),
    ],
)  # fmt: skip
def test_assignments_are_toml_or_else_text(text, value):
    (section,) = assignment(text).values()
    assert list(section.values()) == [value]


@pytest.mark.parametrize("text", ["x", "x=1", ".x=1", "run.=1", "=", ""])
def test_an_assignment_without_section_key_and_value_is_refused(text):
    with pytest.raises(ConfigError) as error:
        assignment(text)
    assert str(error.value) == (
        f"--set {text!r}: expected section.key=value, for example --set local.learning_rate=3e-4"
    )


@pytest.mark.parametrize("text", ["", "a", "3-1", "-1", "1-", "1,,2", "1-2-3", "1000000", "0-9999999999", "1\n2", "²"])
def test_clients_are_numbers_and_ranges(text):
    assert clients_of(" 5,0-2 ,1") == (0, 1, 2, 5) and clients_of("999998-999999") == (999_998, 999_999)
    with pytest.raises(ConfigError, match=r"^clients .*: expected numbers below a million and ranges, for"):
        clients_of(text)


def test_files_that_are_not_toml_are_refused(tmp_path):
    bad, binary = tmp_path / "bad.toml", tmp_path / "binary.toml"
    bad.write_text("[run\nseed = 1\n")
    binary.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"bad.toml: is not valid TOML: .*line 1"):
        read_toml(bad)
    with pytest.raises(ConfigError, match=r"binary.toml: is not valid TOML: 'utf-8' codec"):
        read_toml(binary)
    with pytest.raises(ConfigError, match=r"^recipe gone.toml: cannot be read: No such file or directory$"):
        read_toml(Path("gone.toml"))


DEEP = "[" * 100_000
LONG_NUMBER = "9" * 5000


@pytest.mark.parametrize("text, reason", [
    (f"a = {DEEP}", "nested too deeply"), (f"[run]\nseed = {LONG_NUMBER}", "Exceeds the limit (4300 digits)"),
])  # fmt: skip
def test_toml_that_is_too_deep_or_too_long_is_said(tmp_path, text, reason):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_toml(tmp_path / "mine.toml")
    assert str(error.value).startswith(f"recipe {tmp_path / 'mine.toml'}: is not valid TOML: {reason}")


@pytest.mark.parametrize("text, reason", [
    (DEEP, "nested too deeply"), (f'{{"run": {{"seed": {LONG_NUMBER}}}}}', "an integer in it has too many digits"),
    ("[]", "is not a table of sections"),
])  # fmt: skip
def test_json_that_is_too_deep_or_too_long_is_said(text, reason):
    with pytest.raises(ConfigError) as error:
        build_json(text, "the server's recipe")
    assert str(error.value).startswith("the server's recipe: ") and str(error.value).endswith(reason)


NO_TEXT = "give text without nul bytes and without halves of characters (lone surrogates)"
TYPES = [
    ({"run": {"seed": True}}, "run.seed = True: must be a whole number, without quotes"),
    ({"run": {"seed": "1"}}, "run.seed = '1': must be a whole number, without quotes"),
    ({"federation": {"num_rounds": 3.0}}, "federation.num_rounds = 3.0: must be a whole number, without quotes"),
    ({"model": {"lora_alpha": False}}, "model.lora_alpha = False: must be a number, without quotes"),
    (
        {"local": {"learning_rate": True}},
        "local.learning_rate = True: give a number greater than 0 and at most 1e+06, or 'auto'",
    ),
    ({"secure_sum": {"enabled": 1}}, "secure_sum.enabled = 1: must be true or false"),
    ({"run": {"seed": 16**5000}}, "run.seed = a int that cannot be shown: input should be less than "),
    ({"task": {"max_train": 16**5000}}, "task.max_train = a int that cannot be shown: give a number below 9e+18"),
    ({"model": {"name": "a\0b"}}, f"model.name = 'a\\x00b': {NO_TEXT}"),
    ({"task": {"path": "a\ud800"}}, f"task.path = 'a\\ud800': {NO_TEXT}"),
    ({"task": {"answers": {"\ud800": "x"}}}, f"task.answers = {{'\\ud800': 'x'}}: {NO_TEXT}"),
    ({"model": {"trainable": ["\0"]}}, f"model.trainable = ['\\x00']: {NO_TEXT}"),
]


@pytest.mark.parametrize("values, message", TYPES)
def test_types_of_settings_are_exact(values, message):
    assert refused(**values).startswith(f"mine.toml: {message}")


def test_an_integer_does_for_a_float_and_a_list_for_a_tuple():
    recipe = build({"model": {"lora_alpha": 8, "trainable": ["*"]}, "local": {"learning_rate": 1}})
    assert (recipe.model.lora_alpha, recipe.model.trainable, recipe.local.learning_rate) == (8.0, ("*",), 1.0)


@pytest.mark.parametrize("name", ["x" * 100_000, "folder/" + "y" * 300, "é" * 200])
def test_a_name_that_no_file_system_takes_is_refused_before_it_is_looked_for(name):
    told = refused(model={"name": name})
    assert told.startswith("mine.toml: model.name = '") and len(told) < 600
    assert told.endswith("a path has at most 4,096 bytes, and each name in it at most 255: give a shorter one")


def test_the_home_of_nobody_is_refused():
    told = refused(model={"name": "~nobody-of-this-name/model"})
    assert told.endswith("names the home folder of a user who is not here: give the whole path")


@pytest.mark.parametrize(
    "text", ["run.seed=1\nlocal.clip=2", "task.template=one\r\ntwo", "run.seed=1\n[local]\nclip=2"]
)
def test_a_set_of_several_lines_is_refused_not_cut(text):
    with pytest.raises(ConfigError) as error:
        assignment(text)
    assert str(error.value) == (
        f"--set {text!r}: is one setting on one line: give --set once for each, and a line break within a text as \\n "
        'between quotes, such as task.template="first\\nsecond"'
    )
    assert assignment('task.template="first\\nsecond"') == {"task": {"template": "first\nsecond"}}
