"""What others wrote is bounded and printable wherever it is logged, printed, stored or echoed."""

import io
import json

import pytest
import whole_files
from rich.text import Text
from small_federation import Answers, protocol, recipe, reply, server, site

from seedtune import console, inspection, results, tables, watching
from seedtune.deploy.news import Standing, Told
from seedtune.errors import ConfigError, EngineError, SeedtuneError, TrajectoryError, unknown
from seedtune.fed.hello import differences
from seedtune.fed.rounds import one_round
from seedtune.foreign_text import MOST_MESSAGE, MOST_REASON, describe, is_text, parse_json, quote, sanitize
from seedtune.zo.trajectory_file import parse

EVIL = "\x1b[2J\x1b[31mround 1, accuracy 100 %\r\nseedtune: \u202egnp.exe \x07\ud800"


def shown(*parts, width: int = 200) -> str:
    printer = console.Console(file=io.StringIO(), width=width, markup=False)
    for part in parts:
        printer.print(part)
    return printer.file.getvalue()


def is_safe(text: str) -> bool:
    return text.replace("\n", "").isprintable()


def test_controls_bidi_marks_and_line_breaks_become_visible():
    assert sanitize(EVIL) == ("\\x1b[2J\\x1b[31mround 1, accuracy 100 %\\r\\nseedtune: \\u202egnp.exe \\x07\\ud800")
    assert sanitize("Größe, 大きさ, 🙂") == "Größe, 大きさ, 🙂"


@pytest.mark.parametrize("text", ["x" * 10**7, "\x1b" * 10**7, "ab\n" * 1000])
def test_what_is_long_keeps_its_beginning_and_its_end(text):
    told = sanitize(text + "the end")
    assert len(told) <= 300 and told.endswith("the end") and told.isprintable() and "some left out]" in told
    assert sanitize(told) == told


def test_every_error_of_ours_is_bounded_and_printable():
    error = SeedtuneError(f"given {EVIL * 1000}: do that")
    assert len(str(error)) == MOST_MESSAGE and str(error).isprintable() and str(error).endswith(": do that")
    assert str(SeedtuneError()) == "" and str(EngineError("two\nlines")) == "two\\nlines"


def test_errors_of_others_are_described_on_one_line():
    assert describe(ValueError("two\n  lines")) == "ValueError: two lines" and describe(KeyError()) == "KeyError"
    assert len(describe(RuntimeError("x" * 10**7))) == MOST_REASON


def test_values_that_python_cannot_write_are_quoted():
    deep: list = []
    for _ in range(10_000):
        deep = [deep]
    assert quote(16**5000) == "a int that cannot be shown" and quote(deep) == "a list that cannot be shown"
    assert len(quote("x" * 10**6)) == 300


def test_names_that_do_not_exist_are_bounded():
    assert len(unknown("task", "x" * 10**6, ["rte", "sst2"])) < 400


@pytest.mark.parametrize("text, reason", [
    ("[" * 100_000, "nested too deeply"), ("9" * 5000, "an integer in it has too many digits"),
    (b"\xff", "not UTF-8 at byte 0"), ("{", "not JSON: Expecting property name enclosed in double quotes: line 1"),
])  # fmt: skip
def test_json_that_cannot_be_read_is_said(text, reason):
    with pytest.raises(ValueError) as error:
        parse_json(text)
    assert str(error.value).startswith(reason)


def test_halves_of_characters_and_nul_bytes_are_no_text():
    assert is_text("Größe 🙂") and not is_text("a\0b") and not is_text("\ud800")


def test_what_a_client_failed_with_is_bounded_in_the_metrics():
    settings = recipe()
    answers = Answers({2: RuntimeError(EVIL * 200_000), 0: reply(0)})
    _, result = one_round(server(site(settings)), protocol(settings), answers)
    assert len(result.failed[2]) == MOST_REASON and result.failed[2].isprintable()
    assert result.failed[2].startswith("RuntimeError: \\x1b[2J")


def test_what_a_node_says_it_has_is_bounded_in_its_refusal():
    told = differences({"base digest": "ab"}, {"base digest": EVIL * 10**5, EVIL: "x"})
    assert len(told) <= MOST_MESSAGE and told.isprintable() and told.startswith("its base digest is '\\x1b[2J")


def test_a_trajectory_does_not_echo_what_it_holds(tmp_path):
    from safetensors.numpy import save

    from seedtune.zo.trajectory_file import _frame

    for fields in ({"format": EVIL * 10**5}, {"format": 1, "noise_version": 1, "distribution": "x" * 10**6}):
        payload = save({}, {"header": json.dumps(fields)})
        with pytest.raises(TrajectoryError) as error:
            parse(_frame(b"", payload))
        assert len(str(error.value)) < 600 and str(error.value).isprintable()


def test_tables_and_lines_on_the_screen_cannot_steer_the_terminal(monkeypatch):
    monkeypatch.setattr(tables, "differing_tasks", lambda folders: [EVIL])
    row = whole_files.row(1, failed={"2": EVIL}, surge=EVIL)
    assert is_safe(watching.line(row, 9))
    compared = [{"run": EVIL, **{name: None for name in inspection.COMPARED}}]
    compared[0] |= whole_files.summary(method=EVIL)
    listed = shown(console.pairs({EVIL: EVIL}), *tables.compare(compared), EVIL, Text("fine"))
    assert is_safe(listed) and "\\x1b[2J" in listed
    assert is_safe("".join(results.events(whole_files.summary(surges={EVIL: EVIL}))))


def test_a_generated_text_keeps_its_lines():
    assert shown("one\n\ttwo \x1b[31mred") == "one\n\ttwo \\x1b[31mred\n".expandtabs(8)


def test_logs_and_states_that_supervisors_pass_on_are_escaped(tmp_path):
    (tmp_path / "log").write_bytes(EVIL.encode(errors="replace") + b"\n\xff\x1b[31mone\x85two\n")
    told = Told(tmp_path / "log").news()
    assert all(line.isprintable() for line in told) and told[-1].endswith("\\x1b[31mone\ufffdtwo")
    standing = Standing(tmp_path / "status.json")
    for status, expected in (
        ({"run": EVIL, "round": "3"}, "takes part"), ({"run": "a", "round": 3, "digest": [EVIL]}, "in round 4, which"),
        ({"run": "a", "refused": EVIL * 1000}, "refused, since \\x1b[2J"),
    ):  # fmt: skip
        (tmp_path / "status.json").write_text(json.dumps(status))
        line = standing.news()
        assert line and line.isprintable() and expected in line and len(line) < 800
    for text in ("[]", "[" * 100_000, '"x"'):
        (tmp_path / "status.json").write_text(text)
        assert standing.news() is None


def test_the_command_line_bounds_every_message(seedtune):
    told = seedtune("run", "--set", "x" * 10**5)
    assert told.code == 2 and len(told.err) <= MOST_MESSAGE + len("error: \n")
    told = seedtune("inspect", "no\x1b[31m" + "x" * 3000)
    assert told.code == 2 and told.err.replace("\n", "").isprintable() and len(told.err) <= MOST_MESSAGE + 8
    told = seedtune("no-such-command-" + "y" * 10**4 + "\x1b[31m")
    assert told.code == 2 and told.err.replace("\n", "").isprintable() and len(told.err) <= MOST_MESSAGE + 8


def test_an_unwritable_object_is_described():
    class Rude:
        def __str__(self):
            raise ConfigError("never")

    assert sanitize(Rude()) == "a Rude that cannot be shown (ConfigError)"
