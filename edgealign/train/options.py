"""Options that several commands of `edgealign train` share, so that each is worded once, and how they are read."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from edgealign.errors import InvalidInput

Run = Annotated[Path, typer.Argument(help="Folder of the run; one that exists goes on where it stopped.")]
Data = Annotated[Path | None, typer.Option(help="Folder of the packs. Default: $EDGEALIGN_DATA.")]
Minutes = Annotated[float | None, typer.Option(min=0, help="Stop after so long; the same line goes on.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the weights and tasks; splits and episodes do not depend on it.")]
Cache = Annotated[Path | None, typer.Option(help="Where features are kept. Default: the user's cache folder.")]
Threads = Annotated[int, typer.Option(min=1, help="Of torch.")]
MethodName = Annotated[str, typer.Option(help="What meta-training does; `edgealign train methods` lists them.")]
LoopSettings = Annotated[str, typer.Option("--set", help="Fields of LoopConfig: name=number, with commas.")]
Shots = Annotated[str, typer.Option(help="Labeled target samples per label at meta-test, with commas.")]
Queries = Annotated[int, typer.Option(min=1, help="Queries per label at meta-test.")]
Episodes = Annotated[int, typer.Option(min=2, help="Episodes at meta-test with the prototype head.")]


def given_packs(data: Path | None) -> Path | None:
    """--data, else $EDGEALIGN_DATA, else None."""
    return data or (Path(os.environ["EDGEALIGN_DATA"]) if os.environ.get("EDGEALIGN_DATA") else None)


def packs_folder(data: Path | None) -> Path:
    """--data, or $EDGEALIGN_DATA; InvalidInput where neither is a folder."""
    data = given_packs(data)
    if data is None:
        raise InvalidInput("--data or $EDGEALIGN_DATA must name the folder that holds the packs")
    if not data.is_dir():
        raise InvalidInput(f"'{data}' is not a folder: --data, or $EDGEALIGN_DATA, names the one that holds the packs")
    return data


def chosen_settings(text: str, config: type) -> dict[str, float | int]:
    """name=number,... as keyword arguments of a config; InvalidInput names the fields that may be set."""
    defaults = {f.name: f.default for f in fields(config) if type(f.default) in (int, float)}
    chosen = {}
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        if name not in defaults:
            raise InvalidInput(f"'{name}' cannot be set: expected one of {', '.join(defaults)}")
        try:
            chosen[name] = type(defaults[name])(value)
        except ValueError:
            expected = "a whole number" if type(defaults[name]) is int else "a number"
            raise InvalidInput(f"'{item}': expected {name}= and {expected}") from None
    return chosen


def parse_shots(text: str) -> tuple[int, ...]:
    """ "1,5,10" as numbers, smallest first."""
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise InvalidInput(f"--shots is '{text}': expected numbers from 1 on, with commas")
    return tuple(found)
