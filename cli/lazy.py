"""Commands that are imported when they are asked for: `classify` starts without waiting for the others."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer
import typer.core
import typer.main

# Command -> module in edgealign.cli, and the function or application in it.
COMMANDS = {
    "scan": "scanning:scan",
    "calibrate": "scanning:calibrate",
    "simulate": "scanning:simulate",
    "listen": "listening:listen",
    "evaluate": "evaluating:evaluate",
    "store": "artifacts:store_app",
    "bundle": "bundles:bundle_app",
}


class LazyGroup(typer.core.TyperGroup):
    """The commands of an application, and those of COMMANDS."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *COMMANDS]

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
