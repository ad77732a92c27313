"""What a report says of the machine that it was made on."""

from __future__ import annotations

import os
import platform
import sys

from edgealign import __version__, kernels


def describe() -> dict[str, str]:
    """Versions, processor and backend, as they go into reports."""
    import numpy
    import onnxruntime

    return {
        "edgealign": __version__,
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "onnxruntime": onnxruntime.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpu_threads": str(os.cpu_count()),
        "backend": kernels.backend(),
        "instruction_set": kernels.instruction_set() or "none, numpy computes",
    }


def cpu_name() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith(("model name", "Model")):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def peak_rss_mb() -> float:
    """The most memory that this process held at once, in 10^6 bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
