"""What would be started, printed as text that a shell takes: for systemd units, containers, or curious people."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from .processes import Command


def plan(files: Mapping[Path, str], commands: Sequence[Command], afterwards: Sequence[Command] = ()) -> None:
    """Prints files, the environment of Flower's processes, the processes in order, and what is asked of them then."""
    for path, text in files.items():
        print(f"# file {path}")
        print("".join(f"#     {line}\n" for line in text.splitlines() if line))
    print("# environment")
    for name, value in dict(pair for command in commands for pair in command.environment.items()).items():
        print(f"export {name}={shlex.quote(value)}")
    for command in commands:
        print(f"\n# process {command.name}\n{command.shown()}")
    if afterwards:
        print("\n# once the first answers")
    for command in afterwards:
        print(command.shown())
