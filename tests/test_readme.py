"""The README's commands do what it says, in the order in which it gives them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", README, flags=re.DOTALL)
SET_UP = [text for kind, text in BLOCKS if kind == "sh" and "venv" in text]
USED = [(kind, text) for kind, text in BLOCKS if "venv" not in text]


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README expects it: samples/<label>/ and clip.wav, from the demo's clips."""
    folder = tmp_path_factory.mktemp("field")
    clips = ROOT / "edgealign" / "demo_clips"
    shutil.copytree(clips / "enroll", folder / "samples")
    import soundfile

    samples, rate_hz = soundfile.read(clips / "ask" / "water_rms_15dB.ogg")
    soundfile.write(folder / "clip.wav", samples, rate_hz)
    return folder


def test_every_command_after_installation_works_in_order(field: Path) -> None:
    environment = os.environ | {
        "EDGEALIGN_STORE": str(field / "stores"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    environment.pop("EDGEALIGN_BUNDLE", None)
    for kind, text in USED:
        command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(command, cwd=field, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    answered = subprocess.run(
        ["edgealign", "classify", "clip.wav"], cwd=field, env=environment, capture_output=True, text=True, timeout=60
    )
    (shown,) = re.findall(r"```text\n(.*?)\n```", README)
    assert shown.partition(",")[0] == answered.stdout.partition(",")[0] == "clip.wav: water"


def test_the_check_runs_the_line_that_the_readme_gives() -> None:
    assert len(SET_UP) == 2
    runtime, everything = (text.strip() for text in SET_UP)
    assert "\n" not in runtime + everything
    assert runtime.endswith("edgealign demo") and "torch" not in runtime
    assert everything.endswith("python -m pytest") and "torch==2.13.0" in everything
    script = (ROOT / ".ci" / "run").read_text()
    pattern = re.search(r"grep -m1 '(.*)' README.md", script).group(1)
    assert [line for line in README.splitlines() if re.search(pattern, line)] == [everything]


def test_every_link_leads_somewhere() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "README.md"]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
