"""Loads an untrusted graph for the first time in a process of its own, under a limit of time and memory.

`onnx_check` comes first and sees what a model's bytes say; what ONNX Runtime makes of them while it folds constants,
plans memory and runs can still be endless, or end the process. So the first load, and a run on silence of a usual size,
happen where that does no harm. What passed is remembered by its SHA-256 and the versions in the user's cache folder, so
that later loads cost nothing. Memory is limited on Linux, time everywhere.

Run as a script, this file is that process: it needs nothing of edgealign, and reads the model from standard input.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

MAX_SECONDS = 60
MAX_BYTES = 2**30  # beyond what the interpreter and ONNX Runtime take by themselves
BYTES_PER_MODEL_BYTE = 8  # a model in memory: its bytes, the parsed graph, the folded and the packed weights
_REFUSED, _TOO_LARGE = 3, 4  # exit codes; a message is on standard output
_OUT_OF_MEMORY = ("bad_alloc", "bad allocation", "Failed to allocate")
_NUMPY_OF = {
    "tensor(float)": "f4", "tensor(float16)": "f2", "tensor(int64)": "i8", "tensor(int32)": "i4", "tensor(bool)": "?",
}  # fmt: skip
_USUAL_SIZES = {2: 16_000, 3: 128}  # rank of an input -> size of what its shape leaves open, beside the batch of 1


def check_first_load(model: bytes, sha256: str) -> None:
    """ValueError, with what is wrong as a clause about "it", where a model is hostile or takes too much to load."""
    import onnxruntime

    from edgealign import __version__
    from edgealign.cache import cache_file, remember
    from edgealign.onnx_check import check_onnx

    known = cache_file("loaded", f"{sha256}-{__version__}-{onnxruntime.__version__}")
    if os.path.exists(known):
        return
    check_onnx(model)
    load_apart(model)
    remember(known)


def load_apart(model: bytes, max_seconds: float = MAX_SECONDS, max_bytes: int = MAX_BYTES) -> None:
    """`check_first_load` that remembers nothing."""
    if getattr(sys, "frozen", False):
        return  # of an app that is one file, sys.executable is the app itself
    import subprocess

    max_bytes += BYTES_PER_MODEL_BYTE * len(model)
    command = [sys.executable, "-P", __file__, str(max_bytes), str(max_seconds)]
    try:
        done = _run(command, model, max_seconds)
    except subprocess.TimeoutExpired:
        raise ValueError(f"it takes more than {max_seconds:g} s to load and to run once") from None
    message = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode == _TOO_LARGE:
        raise ValueError(f"it takes more than {max_bytes // 2**20} MiB to load and to run once")
    if done.returncode == _REFUSED:
        raise ValueError(f"ONNX Runtime refuses it: {message}")
    if done.returncode != 0:
        raise ValueError(
            f"ONNX Runtime breaks down on it (exit code {done.returncode}) with {max_bytes // 2**20} MiB and "
            f"{max_seconds:g} s to load it"
        )


def _run(command: list[str], model: bytes, max_seconds: float) -> subprocess.CompletedProcess[bytes]:
    import subprocess

    if not hasattr(os, "memfd_create"):
        return subprocess.run(command, input=model, capture_output=True, timeout=max_seconds)
    # Through a pipe, subprocess would hand the model over in pieces of 4 KiB.
    with os.fdopen(os.memfd_create("model"), "w+b") as file:
        file.write(model)
        file.seek(0)
        return subprocess.run(command, stdin=file, capture_output=True, timeout=max_seconds)


def _limit(max_bytes: int, max_seconds: float) -> None:
    try:
        import resource
    except ImportError:
        return
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            in_use_bytes = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        in_use_bytes = 0  # macOS, which does not hold a process to RLIMIT_AS
    limits = {
        resource.RLIMIT_CPU: int(max_seconds) + 1,
        resource.RLIMIT_CORE: 0,
        **({resource.RLIMIT_AS: in_use_bytes + max_bytes} if in_use_bytes else {}),
    }
    for kind, limit in limits.items():
        _, hard = resource.getrlimit(kind)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, hard))


def _main() -> int:
    model = sys.stdin.buffer.read()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    _limit(int(sys.argv[1]), float(sys.argv[2]))
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        print(error)
        return _TOO_LARGE if _is_about_memory(error) else _REFUSED
    try:
        if all(given.type in _NUMPY_OF for given in session.get_inputs()):
            session.run(None, {given.name: _silence(given) for given in session.get_inputs()})
    except Exception as error:  # a size that it does not take says nothing
        return _TOO_LARGE if _is_about_memory(error) else 0
    return 0


def _is_about_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in _OUT_OF_MEMORY)


def _silence(given: object) -> object:
    """Zeros for one input of a session."""
    import numpy as np

    usual = _USUAL_SIZES.get(len(given.shape), 64) if "float" in given.type else 16
    sizes = [size if isinstance(size, int) else 1 if at == 0 else usual for at, size in enumerate(given.shape)]
    return np.zeros(sizes, _NUMPY_OF[given.type])


if __name__ == "__main__":
    code = _main()
    sys.stdout.flush()
    os._exit(code)  # without the seconds that tearing down may take under a limit
