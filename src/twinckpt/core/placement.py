"""Which machines hold whose shards: group, ring and mixed placement (GEMINI §4, Algorithm 1).

Pure data: machines are numbers, and nothing here knows whether they are alive. `num_replicas`
is the paper's m and counts the local copy, so 1 means that no peer holds anything.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from twinckpt.errors import ConfigurationError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Placement:
    """`holders[i]` are the machines that hold machine i's shards, i itself first."""

    num_machines: int
    num_replicas: int
    kind: str
    holders: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        _check_size(self.num_machines, self.num_replicas)
        if len(self.holders) != self.num_machines:
            raise ValueError(
                f"{len(self.holders)} rows of holders for {self.num_machines} machines"
            )
        machines = range(self.num_machines)
        for machine, row in enumerate(self.holders):
            if len(row) != self.num_replicas or len(set(row)) != len(row):
                raise ValueError(f"holders[{machine}]={row}: not {self.num_replicas} machines")
            if row[0] != machine or any(holder not in machines for holder in row):
                raise ValueError(
                    f"holders[{machine}]={row}: must begin with {machine} and stay "
                    f"below num_machines={self.num_machines}"
                )

    def replica_groups(self) -> tuple[tuple[int, ...], ...]:
        """Return each distinct set of machines that together hold some shard, sorted.

        Losing every machine of one of them loses a shard from all RAM.
        """
        return tuple(sorted({tuple(sorted(row)) for row in self.holders}))


def group(num_machines: int, num_replicas: int, order: Sequence[int] | None = None) -> Placement:
    """Cut the machines into groups of m; each sends to all others of its group."""
    order = _check_order(num_machines, num_replicas, order)
    if num_machines % num_replicas:
        raise ConfigurationError(
            f"placement=group: num_machines={num_machines} is no multiple of "
            f"num_replicas={num_replicas}; use placement=mixed"
        )
    return _from_rings(
        "group", num_replicas, [num_replicas] * (num_machines // num_replicas), order
    )


def ring(num_machines: int, num_replicas: int, order: Sequence[int] | None = None) -> Placement:
    """Let each machine send to the next m − 1 of one ring."""
    order = _check_order(num_machines, num_replicas, order)
    return _from_rings("ring", num_replicas, [num_machines], order)


def mixed(num_machines: int, num_replicas: int, order: Sequence[int] | None = None) -> Placement:
    """Algorithm 1: groups of m, and one ring of the machines that are left over.

    Equals `group` when m divides N. Otherwise ⌊N/m⌋ − 1 groups are followed by a ring of
    between m + 1 and 2m − 1 machines.
    """
    order = _check_order(num_machines, num_replicas, order)
    return _from_rings("mixed", num_replicas, _mixed_sizes(num_machines, num_replicas), order)


def make_placement(
    kind: str, num_machines: int, num_replicas: int, domains: Sequence[object] | None = None
) -> Placement:
    """Return the placement called `kind`: "group", "ring" or "mixed".

    Args:
        domains: failure domain (a rack, say) of each machine. Machines are then ordered so
            that no shard has two replicas in one domain. Where the domains make that
            impossible, a warning is logged and `shared_domains` names the machines.

    Raises:
        ConfigurationError: for an unknown kind, or sizes that do not fit it.
    """
    check_kind(kind)
    build = _KINDS[kind]
    if domains is None:
        return build(num_machines, num_replicas, None)
    _check_size(num_machines, num_replicas)
    if len(domains) != num_machines:
        raise ConfigurationError(
            f"{len(domains)} failure domains given: must be num_machines={num_machines}"
        )
    placement = build(num_machines, num_replicas, domain_order(kind, num_replicas, domains))
    shared = shared_domains(placement, domains)
    if shared:
        logger.warning(
            "%d of %d machines keep two replicas of a shard in one failure domain; "
            "%d domains of at most %d machines cannot separate %d replicas",
            len(shared),
            num_machines,
            len(set(domains)),
            max(Counter(domains).values()),
            num_replicas,
        )
    return placement


def check_kind(kind: str) -> None:
    """Raise ConfigurationError unless there is a placement called `kind`."""
    if kind not in _KINDS:
        raise ConfigurationError(f"placement={kind!r}: must be one of {', '.join(_KINDS)}")


def domain_order(kind: str, num_replicas: int, domains: Sequence[object]) -> list[int]:
    """Return the machines in the order in which to place them, their failure domains apart.

    A cluster whose place i is given to machine `order[i]` needs to know nothing of domains.
    """
    if kind == "ring":
        return _spread_over_ring(domains, num_replicas)
    return _spread_over_groups(domains, _mixed_sizes(len(domains), num_replicas))


def shared_domains(placement: Placement, domains: Sequence[object]) -> tuple[int, ...]:
    """Return the machines whose shards have two or more replicas in one failure domain."""
    return tuple(
        machine
        for machine, row in enumerate(placement.holders)
        if len({domains[holder] for holder in row}) < len(row)
    )


_KINDS: dict[str, Callable[[int, int, Sequence[int] | None], Placement]] = {
    "group": group,
    "ring": ring,
    "mixed": mixed,
}


def _check_size(num_machines: int, num_replicas: int) -> None:
    if num_machines < 1:
        raise ConfigurationError(f"num_machines={num_machines}: must be at least 1")
    if not 1 <= num_replicas <= num_machines:
        raise ConfigurationError(
            f"num_replicas={num_replicas}: must be between 1 (the local copy alone) and "
            f"num_machines={num_machines}"
        )


def _check_order(
    num_machines: int, num_replicas: int, order: Sequence[int] | None
) -> Sequence[int]:
    _check_size(num_machines, num_replicas)
    if order is None:
        return range(num_machines)
    if sorted(order) != list(range(num_machines)):
        raise ValueError(f"order={list(order)}: must name each of {num_machines} machines once")
    return order


def _mixed_sizes(num_machines: int, num_replicas: int) -> list[int]:
    num_groups = num_machines // num_replicas
    return [num_replicas] * (num_groups - 1) + [num_machines - num_replicas * (num_groups - 1)]


def _from_rings(
    kind: str, num_replicas: int, sizes: Sequence[int], order: Sequence[int]
) -> Placement:
    """Cut `order` into rings; a ring of m machines is a group."""
    holders: list[tuple[int, ...]] = [()] * len(order)
    start = 0
    for size in sizes:
        members = order[start : start + size]
        for i, machine in enumerate(members):
            holders[machine] = tuple(members[(i + j) % size] for j in range(num_replicas))
        start += size
    return Placement(len(order), num_replicas, kind, tuple(holders))


def _by_domain(domains: Sequence[object]) -> list[list[int]]:
    """Return the machines of each domain, largest domain first; ties by first machine."""
    members: dict[object, list[int]] = {}
    for machine, domain in enumerate(domains):
        members.setdefault(domain, []).append(machine)
    return sorted(members.values(), key=lambda machines: (-len(machines), machines[0]))


def _spread_over_ring(domains: Sequence[object], num_replicas: int) -> list[int]:
    """Order a ring so that machines of one domain are at least m places apart.

    Possible if and only if no domain has more than q = ⌊N/m⌋ machines: the machines, sorted
    by domain and largest domain first, are dealt out to q blocks of at least m places each.
    """
    num_blocks = len(domains) // num_replicas
    dealt = [machine for machines in _by_domain(domains) for machine in machines]
    return [machine for block in range(num_blocks) for machine in dealt[block::num_blocks]]


def _spread_over_groups(domains: Sequence[object], sizes: Sequence[int]) -> list[int]:
    """Order the machines so that each group draws on different domains, if any order does.

    Greedy over the groups, largest (the ring) first, each taking a machine from the domains
    with most machines left: the Gale-Ryser construction, which succeeds whenever one can.
    """
    left = _by_domain(domains)
    groups = []
    for size in reversed(sizes):
        members: list[int] = []
        while len(members) < size:
            left = sorted((machines for machines in left if machines), key=len, reverse=True)
            members += [machines.pop(0) for machines in left[: size - len(members)]]
        groups.append(members)
    return [machine for members in reversed(groups) for machine in members]


def holders_of(kind: str, replicas: int, domains: Sequence[str]) -> tuple[tuple[int, ...], ...]:
    """Return who holds the shards of each machine of a job, itself first.

    Replicas are in different failure domains if those of all machines are known. Where groups do
    not come out even, the last machines form a ring (`mixed`).
    """
    size = len(domains)
    known = domains if all(domains) else None
    return make_placement(
        "mixed" if kind == "group" else kind, size, min(replicas, size), known
    ).holders
