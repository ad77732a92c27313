"""edgealign learns new labels from one to ten samples, on the device that records them.

Public names load on first use, so that `import edgealign` costs no more than numpy does.
"""

# Without `from __future__ import annotations`: the name would stand in front of the package edgealign.annotations.
import os

__version__ = "0.1.0"

# ONNX Runtime from 1.32 on leaves a device id in the user's cache folder and may report its use over the network.
# edgealign works without a network and sends nothing; a variable that is set already stays as it is.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOME = {
    "Bundle": "edgealign.bundle",
    "EdgealignError": "edgealign.errors",
    "Recognizer": "edgealign.recognizer",
    "Store": "edgealign.store",
}
__all__ = [*_HOME, "__version__"]

# In a source tree cli/ and export/ lie beside this folder instead of in it, as they do once installed.
if not os.path.isdir(os.path.join(__path__[0], "cli")):
    __path__.append(os.path.dirname(__path__[0]))


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'edgealign' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
