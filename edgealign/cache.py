"""The cache folder: what edgealign can measure or compute again. All of it may be deleted at any time."""

from __future__ import annotations

import os
import sys


def cache_file(*names: str) -> str:
    """Path in the user's cache folder: $XDG_CACHE_HOME/edgealign on Linux, the platform's own elsewhere."""
    if sys.platform in ("win32", "darwin"):
        import platformdirs

        folder = platformdirs.user_cache_dir("edgealign", appauthor=False)
    else:  # as platformdirs does it, whose import a cold start would notice
        folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "edgealign")
    return os.path.join(folder, *names)


def remember(path: str, text: str = "") -> None:
    """Writes a small file of the cache, whole or not at all; no home, or one that cannot be written, is no error."""
    if not os.path.isabs(path):
        return
    partial = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(partial, path)
    except OSError:
        pass
