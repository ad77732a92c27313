"""Commands that are imported when they are asked for: `classify` starts without waiting for the others."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
import typer.core
import typer.main

# Command -> module in edgealign.cli, and the function or application in it; listed behind the N_FIRST others.
COMMANDS = {
    "scan": "scanning:scan",
    "listen": "listening:listen",
    "evaluate": "evaluating:evaluate",
    "calibrate": "calibrating:calibrate",
    "simulate": "calibrating:simulate",
    "store": "artifacts:store_app",
    "bundle": "bundles:bundle_app",
}
N_FIRST = 2  # enroll and classify


class LazyGroup(typer.core.TyperGroup):
    """The commands of an application, and those of COMMANDS."""

    def list_commands(self, ctx: Any) -> list[str]:
        others = super().list_commands(ctx)
        return [*others[:N_FIRST], *COMMANDS, *others[N_FIRST:]]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        found = getattr(import_module(f"edgealign.cli.{module}"), attribute)
        if isinstance(found, typer.Typer):
            group = typer.main.get_group(found)
            group.name = cmd_name
            return group
        app = typer.Typer(rich_markup_mode=None, add_completion=False)
        app.command(cmd_name)(found)
        return typer.main.get_group(app).get_command(ctx, cmd_name)
