"""When a generation may form, and of how many machines; and when it may grow.

It forms at once, unless that would give up a checkpoint which a short wait can save: surviving
machines may still have to stop their ranks, and one that was cut off may have to connect again,
while spares are there already.
"""

from dataclasses import dataclass

from twinckpt.core.commit import CommitLog
from twinckpt.core.copies import Copies
from twinckpt.core.drains import Drains
from twinckpt.core.membership import Membership
from twinckpt.core.recovery import newest_recoverable

SURVIVORS_REJOIN_S = 30.0  # stopping ranks takes torchrun's grace period at most
SAY_SO_AFTER_S = 10.0


@dataclass(frozen=True, slots=True)
class Forming:
    """The size of the generation that may form now, 0 while it is better to wait.

    `lacks` says what is missing where only further machines can help; empty otherwise.
    """

    size: int = 0
    lacks: str = ""


def size_to_form(
    membership: Membership,
    copies: Copies,
    commits: CommitLog,
    drains: Drains,
    now_s: float,
    *,
    last_call_s: float,
    return_s: float,
) -> Forming:
    """Return the size of the generation that may form now.

    Args:
        last_call_s: how long a job that can do with fewer machines waits for further ones.
        return_s: how long a machine that was cut off is given to come back, where the step
            to resume from depends on it.
    """
    size = membership.size_to_form(now_s, last_call_s)
    waited_s = now_s - membership.last_change_s
    if not size:
        num_waiting, needed = len(membership.waiting), membership.needed
        is_told = waited_s >= SAY_SO_AFTER_S and num_waiting < needed
        return Forming(lacks=f"{num_waiting} of {needed} machines are there" if is_told else "")
    if waited_s < SURVIVORS_REJOIN_S and membership.are_survivors_missing():
        return Forming()
    holdings = {name: copies.of_machine(name) for name in membership.machines}
    newest = newest_recoverable(holdings)
    if waited_s < return_s and newest.ticket < _expected_ticket(membership, copies, commits):
        return Forming()
    if newest.num_machines in (0, size):
        return Forming(size)
    # Shards fit only as many machines as wrote them. With more machines the newest drained step is
    # resumed if no newer step is lost by that. With fewer it is resumed in any case; without a
    # drained step it is better to wait than to begin again from nothing.
    if newest.num_machines < size:
        return Forming(size if drains.has(newest.step) else newest.num_machines)
    if drains.newest_step is not None:
        return Forming(size)
    return Forming(
        lacks=f"{size} machines are there; step {newest.step} in their memory is of "
        f"{newest.num_machines} machines, and nothing is drained that fewer could resume"
    )


def may_grow(membership: Membership, commits: CommitLog, drains: Drains, num_machines: int) -> bool:
    """Return whether a generation of so many machines can end for a larger one at no loss.

    Shards in memory fit as many machines as wrote them; so the newest commit must be drained (or a
    newer one, of a future that was given up), no other one on its way, and further machines wait.
    """
    if membership.size_with_waiting() <= num_machines or drains.is_busy or commits.is_restoring:
        return False
    step = commits.committed_step
    return step is not None and drains.has(step) and not commits.pending()


def _expected_ticket(membership: Membership, copies: Copies, commits: CommitLog) -> int:
    """Return the newest ticket that may be committed, as far as anybody here knows."""
    if membership.places:
        return commits.resumable_ticket
    # A new root knows only the copies it was told of. If all machines that wait hold some, they
    # are the whole former generation; a newcomer may have joined before one of its machines.
    newcomers = [name for name in membership.waiting if not copies.of_machine(name)]
    return max(copies.tickets(), default=0) if newcomers else 0
