"""Helper threads: tasks run at once, may wait for each other, end with their context, and survive a fork."""

from __future__ import annotations

import os
import threading
import time

import pytest

from sv_pipeline.helper_threads import Helpers


def test_tasks_may_wait_for_other_tasks_however_many_there_are() -> None:
    def chain(depth: int) -> int:
        with Helpers() as pool:
            return 0 if depth == 0 else 1 + pool.submit(chain, depth - 1).result()

    with Helpers() as pool:
        assert [future.result() for future in [pool.submit(chain, 20) for _ in range(5)]] == [20] * 5


def test_the_context_ends_after_its_tasks_and_an_error_is_that_of_the_result() -> None:
    ended = []
    with Helpers() as pool:
        pool.submit(lambda: (time.sleep(0.05), ended.append(1)))
        failed = pool.submit(divmod, 1, 0)
    assert ended == [1]
    with pytest.raises(ZeroDivisionError):
        failed.result()


def test_threads_are_used_again() -> None:
    names = set()
    for _ in range(20):
        with Helpers() as pool:
            names.add(pool.submit(threading.get_ident).result())
        time.sleep(0.002)
    assert len(names) < 10


def test_a_forked_process_starts_its_own() -> None:
    with Helpers() as pool:
        pool.submit(int).result()
    if (pid := os.fork()) == 0:
        with Helpers() as pool:
            os._exit(pool.submit(int, "7").result())
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
