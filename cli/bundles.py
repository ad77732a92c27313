"""`edgealign bundle …` with the commands that have modules of their own."""

from edgealign.cli import importing, quantizing
from edgealign.cli.artifacts import bundle_app

bundle_app.command("import")(importing.import_model)
bundle_app.command("quantize")(quantizing.quantize)

__all__ = ["bundle_app"]
