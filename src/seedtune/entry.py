"""The command `seedtune`, small enough to hear Ctrl-C while everything else is imported."""

import sys

from .streams import is_interrupt


def main() -> None:
    """Run the command line. Ctrl-C at any moment is one line and exit code 130."""
    try:
        from .cli import main as run

        run()
    except SystemExit:
        raise
    except BaseException as error:
        if not is_interrupt(error):
            raise
        print("stopped", file=sys.stderr)
        sys.exit(130)
