"""The machine that this runs on, and what a report says of it."""

from __future__ import annotations

import glob
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
        "cpu_cores": str(cpu_cores() or "unknown"),
        "backend": kernels.backend(),
        "instruction_set": kernels.instruction_set() or "none, numpy computes",
    }


def cpu_name() -> str:
    """The processor's own name where the system tells it, else its architecture."""
    return _linux_value("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def cpu_cores(cpus: str = "/sys/devices/system/cpu") -> int | None:
    """Whole cores, of which two threads may share one; None where the system does not tell."""
    siblings = set()
    for path in glob.glob(f"{cpus}/cpu[0-9]*/topology/thread_siblings_list"):
        with open(path, encoding="ascii") as file:
            siblings.add(file.read().strip())
    return len(siblings) or None


def usable_processors() -> int:
    """How many processors this process may run on: a container, a batch system or taskset may leave it some of them."""
    if hasattr(os, "process_cpu_count"):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_rss_mb() -> float:
    """The most memory that this process held at once, in 10^6 bytes."""
    # Linux's getrusage would also count the process that started this one, up to the moment it did.
    own_peak = _linux_value("/proc/self/status", "VmHWM")
    if own_peak is not None:
        return int(own_peak.removesuffix(" kB")) * 1024 / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def _linux_value(path: str, key: str) -> str | None:
    """The first value of a key in a file of /proc; None where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return next((line.partition(":")[2].strip() for line in file if line.startswith(key)), None)
    except OSError:
        return None
