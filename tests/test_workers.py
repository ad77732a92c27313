"""Worker processes: what they give, and how they end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgealign.errors import EdgealignError
from edgealign.workers import results

GIVES = """
import os, sys, time
from edgealign.workers import results

begun = []

def start(word):
    begun.append(word)

def work(task):
    if task == "die":
        os.kill(os.getpid(), 9)
    if task == "wait":
        print(os.getpid(), flush=True)
        time.sleep(600)
    return begun[0] + task
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The functions above in a file, where worker processes find them."""
    (tmp_path / "gives.py").write_text(GIVES)
    monkeypatch.syspath_prepend(str(tmp_path))
    import gives

    yield gives
    del sys.modules["gives"]


def test_every_task_has_a_result(module):
    assert sorted(results(module.work, ["a", "b", "c"], 2, module.start, ("->",))) == ["->a", "->b", "->c"]


def test_a_worker_that_dies_ends_the_work_in_one_sentence(module):
    with pytest.raises(EdgealignError, match="a worker process ended in the middle of its work"):
        list(results(module.work, ["die", "a"], 1, module.start, ("->",)))


def test_workers_end_when_what_started_them_is_killed(tmp_path):
    (tmp_path / "gives.py").write_text(GIVES)
    call = "list(gives.results(gives.work, ['wait'], 1, gives.start, ('',)))"
    (tmp_path / "main.py").write_text(f"import gives\nif __name__ == '__main__':\n    {call}\n")
    with subprocess.Popen([sys.executable, "main.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True) as run:
        worker = int(run.stdout.readline())
        run.send_signal(signal.SIGKILL)
    for _ in range(200):
        if not Path(f"/proc/{worker}").exists() or "Z" in Path(f"/proc/{worker}/stat").read_text().split(") ")[1][:1]:
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived the process that started it")
