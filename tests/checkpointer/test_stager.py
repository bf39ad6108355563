"""Copy jobs run in order, beside a loop that waits for none of them unless it asks."""

import threading

from twinckpt.checkpointer.stager import Stager


def test_a_job_is_taken_while_the_one_before_still_runs():
    stager, may_end, ended = Stager(), threading.Event(), []
    stager.start(lambda: ended.append(may_end.wait(timeout=30) and "first"))
    stager.start(lambda: ended.append("second"))
    assert stager.is_busy
    assert ended == []
    may_end.set()
    stager.wait()
    assert ended == ["first", "second"]
    assert not stager.is_busy


def test_close_lets_every_job_end():
    stager, ended = Stager(), []
    for number in range(20):
        stager.start(lambda number=number: ended.append(number))
    stager.close()
    assert ended == list(range(20))
