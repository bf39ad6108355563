"""Who is connected, who waits for the next generation, and which place each machine gets."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from twinckpt.core import messages as m


@dataclass(slots=True)
class Machine:
    """What the root knows of one connected machine, beside its copies."""

    address: m.Address
    last_heard_s: float
    domain: str


class Membership:
    """Connected machines, those of them that wait, and the places of the last generation.

    `last_change_s` is when a machine last joined, or a generation last ended.
    """

    def __init__(self) -> None:
        self.machines: dict[str, Machine] = {}
        self.waiting: dict[str, m.Join] = {}
        self.places: list[str] = []
        self.index: dict[str, int] = {}
        self.smallest = 0  # how many machines the last generation needed
        self._limits: Counter[tuple[int, int]] = Counter()
        self.last_change_s = 0.0

    def add(self, name: str, machine: Machine) -> None:
        """Record a machine that connected."""
        self.machines[name] = machine

    def remove(self, name: str) -> Machine | None:
        """Forget a machine that is gone; return what was known of it, None if nothing."""
        self.stop_waiting(name)
        return self.machines.pop(name, None)

    def join(self, name: str, join: m.Join, now_s: float) -> None:
        """Record that a machine waits for the next generation."""
        self.stop_waiting(name)
        self.waiting[name] = join
        self._limits[join.min_machines, join.max_machines] += 1
        self.last_change_s = now_s

    def size_to_form(self, now_s: float, last_call_s: float) -> int:
        """Return how many machines may form a generation now; 0 while more must be awaited.

        They may once the maximum waits; or once the minimum does, and either as many wait as the
        last generation had, or `last_call_s` have passed since the last one joined.
        """
        if not self.waiting:
            return 0
        smallest = self.needed
        largest = max(high for _, high in self._limits)
        if len(self.waiting) >= largest:
            return largest
        is_late = now_s - self.last_change_s >= last_call_s
        is_as_before = 0 < len(self.places) <= len(self.waiting)
        is_enough = len(self.waiting) >= smallest and (is_late or is_as_before)
        return len(self.waiting) if is_enough else 0

    @property
    def needed(self) -> int:
        """The smallest minimum that a waiting machine asks for; 0 if none waits."""
        return min((low for low, _ in self._limits), default=0)

    def misfits(self) -> list[str]:
        """Return the waiting machines with another number of ranks than the last generation's.

        If numbers differ and none of its machines waits, that is all machines that gave one.
        """
        numbers = {join.num_ranks for join in self.waiting.values() if join.num_ranks}
        if len(numbers) < 2:
            return []
        found = {self.waiting[name].num_ranks for name in self.places if name in self.waiting}
        fitting = {0, *(found if len(found - {0}) == 1 else ())}
        return [name for name, join in self.waiting.items() if join.num_ranks not in fitting]

    def size_with_waiting(self) -> int:
        """Return how many machines a generation would have with those that wait."""
        if not self.waiting:
            return len(self.places)
        largest = max(high for _, high in self._limits)
        return max(len(self.places), min(len(self.places) + len(self.waiting), largest))

    def are_survivors_missing(self) -> bool:
        """Return whether a machine of the last generation is connected and has yet to join."""
        return any(name in self.machines and name not in self.waiting for name in self.places)

    def take(self, places: Sequence[str]) -> None:
        """Give the places to these machines, in this order."""
        self.places = list(places)
        self.index = {name: index for index, name in enumerate(places)}

    def form(self, size: int, worth: Callable[[str], int]) -> list[m.Join]:
        """Give places to waiting machines; return their joins, in order of the places."""
        self.take(assign_places(self.waiting, self.index, size, worth))
        joins = [self.waiting[name] for name in self.places]
        self.smallest = min(join.min_machines for join in joins)
        for name in self.places:
            self.stop_waiting(name)
        return joins

    def address(self, name: str) -> m.Address | None:
        """Return where a machine serves its slots; None if it is not connected."""
        machine = self.machines.get(name)
        return machine.address if machine else None

    def connected_places(self) -> list[str]:
        """Return the machines of the generation that are connected."""
        return [name for name in self.places if name in self.machines]

    def silent(self, now_s: float, timeout_s: float) -> list[str]:
        """Return the machines that were not heard for longer than the timeout."""
        heard_s = now_s - timeout_s
        return [name for name, machine in self.machines.items() if machine.last_heard_s < heard_s]

    def stop_waiting(self, name: str) -> None:
        """Note that a machine no longer waits, if it did."""
        join = self.waiting.pop(name, None)
        if join is not None:
            limits = (join.min_machines, join.max_machines)
            self._limits[limits] -= 1
            if not self._limits[limits]:
                del self._limits[limits]


def assign_places(
    waiting: Mapping[str, m.Join],
    previous: Mapping[str, int],
    size: int,
    worth: Callable[[str], int],
) -> list[str]:
    """Return the machine of each index.

    Hints come first, then former places; the gaps go to the machines of most `worth` (whose
    copies are the newest), and among equals to those that joined first.
    """
    places: list[str | None] = [None] * size
    unplaced = []
    for name, join in waiting.items():
        hint = previous.get(name) if join.index_hint is None else join.index_hint
        if hint is not None and 0 <= hint < size and places[hint] is None:
            places[hint] = name
        else:
            unplaced.append(name)
    newcomers: Sequence[str] = sorted(unplaced, key=worth, reverse=True)
    gaps = iter(newcomers)
    return [name if name is not None else next(gaps) for name in places]
