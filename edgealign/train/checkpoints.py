"""What every command of training keeps of a run: tensors and plain values in a file."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path

import torch

from edgealign.errors import InvalidInput


def read_checkpoint(path: Path, names: str) -> dict:
    """What was saved there; InvalidInput for anything else. Nothing but tensors and plain values is unpickled.

    names   what a good one is called, for whoever named another
    """
    try:
        state = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InvalidInput(f"there is no checkpoint '{path}': name {names}") from None
    except Exception as error:  # whatever a file that is none makes the unpickler stumble over
        raise InvalidInput(f"'{path}' is not a checkpoint of `edgealign train`, or is damaged: name another") from error
    if not isinstance(state, dict):
        raise InvalidInput(f"'{path}' is not a checkpoint of `edgealign train`: name {names}")
    return state


def plain(config: object) -> dict:
    """The fields of a configuration as JSON would have them, to be saved and compared."""
    return json.loads(json.dumps(asdict(config)))


def refuse_other_config(was: dict, config: object, folder: Path) -> None:
    """InvalidInput where the run in a folder was told something else than now; it may be made longer.

    was   `plain` of the configuration that its checkpoint holds
    """
    now = plain(config)
    other = [name for name in sorted({*was, *now} - {"steps"}) if was.get(name) != now.get(name)]
    if other:
        raise InvalidInput(
            f"'{folder}' was trained with another configuration ({', '.join(other)}): name another run folder"
        )
