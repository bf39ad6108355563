"""The end of a job: from when its first machine leaves, because its ranks have ended well."""

from twinckpt.core import messages as m
from twinckpt.core.membership import Membership
from twinckpt.core.outbox import Outbox


class Ending:
    """Decides what becomes of the machines that are left, and of the spares.

    `generation` is the newest one in which a machine has ended well; 0 if none has.
    """

    def __init__(self, membership: Membership, outbox: Outbox) -> None:
        self.generation = 0
        self._membership = membership
        self._outbox = outbox
        self._unneeded: set[str] = set()

    def dismiss_spares(self, generation: int) -> None:
        """Dismiss the machines that have no place: enough of them would begin the job again."""
        members = self._membership
        self._unneeded = members.machines.keys() - members.index.keys()
        for name in self._unneeded & members.waiting.keys():
            members.stop_waiting(name)
            self.dismiss(name, generation)

    def is_unneeded(self, machine: str) -> bool:
        """Return whether a machine was a spare when the job ended."""
        return machine in self._unneeded

    def dismiss(self, machine: str, generation: int) -> None:
        """Tell a spare to end as well."""
        self._outbox.send(machine, m.Dismissed(generation))

    def forget(self, machine: str) -> None:
        """Forget a machine that is gone."""
        self._unneeded.discard(machine)

    def are_too_few_left(self, generation: int) -> bool:
        """Return whether a job that has begun to end lacks machines to go on with.

        Nobody takes the places of those that have ended.
        """
        members = self._membership
        return self.generation == generation and len(members.machines) < members.smallest

    def refuse_to_wait_in_vain(self, generation: int) -> None:
        """Refuse the machines that wait for a job that cannot go on."""
        if self.are_too_few_left(generation):
            reason = "a rank was lost when other machines had ended already: start the job again"
            for name in list(self._membership.waiting):
                self._membership.stop_waiting(name)
                self._outbox.send(name, m.Refused(generation, reason))
