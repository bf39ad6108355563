"""Messages as bytes."""

import subprocess
import sys

FIRST_MEETING = """
import gc, sys, threading
from twinckpt.core import messages as m
from twinckpt.net import wire

sys.setswitchinterval(1e-6)
gc.set_threshold(1)
where = m.Address("m", "h", 1)
holding = m.Holding(0, 1, 2, 0, 1, 10, "d")
messages = [
    m.Hello(where, 1, (holding,), running=m.Running()), m.Join(1, "h:1", None, 1, 2, 0),
    m.Holds(1, holding), m.Dropped(1, 0, 1, "rot"), m.SaveCounts(1, 0, 3, 2, 1),
]
for payload in map(wire.TO_ROOT.encode, messages):
    meeting = threading.Barrier(4)

    def decode():
        meeting.wait()
        wire.TO_ROOT.decode(payload)

    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_threads_may_meet_a_type_of_message_at_once():
    """The process used to crash inside msgspec if they were the first to."""
    for _ in range(5):
        subprocess.run([sys.executable, "-c", FIRST_MEETING], check=True)
