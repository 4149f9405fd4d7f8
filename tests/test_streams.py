"""The command with streams that are closed or full, or of few letters, and with Ctrl-C at an unkind moment."""

import os
import subprocess
import sys

import pytest

COMMAND = (sys.executable, "-c", "from seedtune.entry import main; main()")
CLOSED = "error: standard output is closed: leave it open, or send it to /dev/null\n"
FULL = "error: standard output: No space left on device\n"
needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")


def shell(line, **environment):
    """Runs a line of shell in which $COMMAND is seedtune; exit code, output, errors."""
    quoted = " ".join(f"'{part}'" for part in COMMAND)
    done = subprocess.run(
        ["sh", "-c", line.replace("$COMMAND", quoted)], capture_output=True, timeout=120,
        env={**os.environ, **environment},
    )  # fmt: skip
    return done.returncode, done.stdout.decode(errors="surrogateescape"), done.stderr.decode()


def test_a_closed_output_is_one_line():
    assert shell("$COMMAND recipes >&-") == (2, "", CLOSED)


@needs_full
@pytest.mark.parametrize("arguments", ["recipes --json", "--help"])
def test_a_full_output_is_one_line(arguments):
    assert shell(f"$COMMAND {arguments} >/dev/full") == (2, "", FULL)


def test_a_closed_or_full_error_stream_changes_no_exit_code():
    assert shell("$COMMAND recipes 2>&-")[0] == 0
    assert shell("$COMMAND recipe 2>&-")[0] == 2
    if os.path.exists("/dev/full"):
        assert shell("$COMMAND recipe 2>/dev/full")[0] == 2


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_letters_that_a_stream_lacks_are_written_as_numbers(encoding):
    shown = "grö\\udcff" if encoding == "utf-8" else "gr\\xf6\\udcff"
    code, out, error = shell(r"$COMMAND inspect $(printf 'gr\303\266\377')", PYTHONIOENCODING=encoding, PYTHONUTF8="1")
    assert (code, out) == (2, "")
    assert error == f"error: trajectory {shown}: cannot be read: No such file or directory\n"


RAISED = ("raise KeyboardInterrupt", "raise ImportError from KeyboardInterrupt()")


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("module, arguments", [("seedtune.presets", "recipes"), ("seedtune.inspection", "doctor")])
def test_ctrl_c_while_importing_is_one_line(module, arguments, raised):
    """Also where a library makes an error of its own of it."""
    code = f"""
import sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            {raised}
sys.meta_path.insert(0, Interrupting())
sys.argv = ['seedtune', {arguments!r}]
from seedtune.entry import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped\n")
