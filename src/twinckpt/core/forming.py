"""When a generation may form, and of how many machines.

At once, unless that gave up a checkpoint which a short wait can save: machines that live may
still have to stop their ranks, one that was cut off connects again, and spares are faster.
"""

from twinckpt.core.commit import CommitLog
from twinckpt.core.copies import Copies
from twinckpt.core.drains import Drains
from twinckpt.core.membership import Membership
from twinckpt.core.recovery import newest_recoverable

SURVIVORS_REJOIN_S = 30.0  # stopping ranks takes torchrun's grace period at most


def size_to_form(
    membership: Membership,
    copies: Copies,
    commits: CommitLog,
    drains: Drains,
    now_s: float,
    *,
    last_call_s: float,
    return_s: float,
) -> int:
    """Return the size of the generation that may form now; 0 while it is better to wait.

    Args:
        last_call_s: how long a job that can do with fewer machines waits for further ones.
        return_s: how long a machine that was cut off is given to come back, where the step
            to resume from depends on it.
    """
    size = membership.size_to_form(now_s, last_call_s)
    if not size:
        return 0
    waited_s = now_s - membership.last_change_s
    if waited_s < SURVIVORS_REJOIN_S and membership.are_survivors_missing():
        return 0
    holdings = {name: copies.of_machine(name) for name in membership.machines}
    ticket, num_machines = newest_recoverable(holdings)
    if waited_s < return_s and ticket < _expected_ticket(membership, copies, commits):
        return 0
    if num_machines in (0, size):
        return size
    # Shards fit only as many machines as wrote them. With fewer the newest drained step is
    # resumed; without one it is better to wait than to begin again from nothing.
    if num_machines < size:
        return num_machines
    return size if drains.newest_step is not None else 0


def _expected_ticket(membership: Membership, copies: Copies, commits: CommitLog) -> int:
    """Return the newest ticket that may be committed, as far as anybody here knows."""
    if membership.places:
        return commits.resumable_ticket
    # A new root knows the copies it was told of. If only machines that hold some wait, these
    # are all of the former generation; a newcomer among them may be faster than one of it.
    newcomers = [name for name in membership.waiting if not copies.of_machine(name)]
    return max(copies.tickets(), default=0) if newcomers else 0
