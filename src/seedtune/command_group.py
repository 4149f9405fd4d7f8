"""The group of all commands: their order in the help, whole sentences, `-h`, one suggestion for a mistyped name."""

from typing import Any

import typer.core

ORDER = (
    "quickstart", "run", "resume", "evaluate", "predict", "generate", "task", "tasks", "init", "inspect", "compare",
    "report", "watch", "replay", "recipes", "doctor", "study", "probe", "deploy",
)  # fmt: skip
"""Commands as a newcomer needs them; one that is not named here comes after `recipes`."""
CONTEXT = {"help_option_names": ["-h", "--help"]}
"""For the outermost group; those within inherit it."""
_WHOLE = 1000
"""Letters of a command's first sentence in the list of commands: more than any has."""


class CommandGroup(typer.core.TyperGroup):
    """A group that lists its commands in `ORDER`, each with its whole first sentence."""

    def list_commands(self, ctx: Any) -> list[str]:
        other = ORDER.index("doctor")
        return sorted(self.commands, key=lambda name: ORDER.index(name) if name in ORDER else other)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """As click's, which cuts sentences to fit one line."""
        rows = [(name, command.get_short_help_str(_WHOLE)) for name, command in _visible(self, ctx)]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As typer's, which names near commands; newer versions of click would name them once more."""
        try:
            return super().resolve_command(ctx, args)
        except Exception as error:
            if hasattr(error, "possibilities"):
                error.possibilities = None
            raise


def _visible(group: CommandGroup, ctx: Any) -> list[tuple[str, Any]]:
    found = ((name, group.get_command(ctx, name)) for name in group.list_commands(ctx))
    return [(name, command) for name, command in found if command is not None and not command.hidden]
