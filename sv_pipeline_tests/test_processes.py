"""Worker processes belong to their parent alone. Real processes, real signals."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import os, sys, time
from sv_pipeline.processes import Workers

if __name__ == "__main__":
    try:
        with Workers(2) as workers:
            print("begins", flush=True)
            for future in [workers.submit(time.sleep, 0.05) for _ in range(100)]:
                future.result()
    except KeyboardInterrupt:
        sys.exit(130)
"""

HELD = """
import multiprocessing, os, signal, threading, time
from sv_pipeline.processes import interrupts_held

def tell(answers):
    answers.put(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()))

if __name__ == "__main__":
    threading.Thread(target=time.sleep, args=(2,), daemon=True).start()  # it may take the signal
    try:
        with interrupts_held():
            context = multiprocessing.get_context("spawn")
            answers = context.SimpleQueue()
            child = context.Process(target=tell, args=(answers,))
            os.kill(os.getpid(), signal.SIGINT)
            child.start()
            print("child held:", answers.get(), flush=True)
            child.join()
        print("the interrupt is lost")
    except KeyboardInterrupt:
        print("interrupted afterwards")
"""


def begun(folder: Path) -> subprocess.Popen[str]:
    """A process that begins to start workers, in a group of its own."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    return process


def wait_for_the_end_of(group: int) -> None:
    deadline = time.monotonic() + 30
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.01)
        pytest.fail("a worker has outlived its parent")


@pytest.mark.parametrize("seed", range(6))
def test_ctrl_c_at_any_moment_ends_all_without_a_traceback(tmp_path: Path, seed: int) -> None:
    process = begun(tmp_path)
    time.sleep(random.Random(seed).uniform(0, 0.3))
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")
    wait_for_the_end_of(process.pid)


def test_an_interrupt_is_held_from_a_child_and_comes_afterwards(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(HELD)
    said = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=60)
    assert (said.stdout, said.stderr) == ("child held: True\ninterrupted afterwards\n", "")


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    process = begun(tmp_path)
    time.sleep(0.5)
    process.kill()
    process.communicate(timeout=60)
    wait_for_the_end_of(process.pid)
