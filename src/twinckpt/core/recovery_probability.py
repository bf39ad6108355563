"""Pr(every shard survives in RAM | k machines lost at once), by four methods that agree.

Every set of k lost machines counts as equally likely. N is `num_machines`, m `num_replicas`,
k `num_lost`. Losses of whole failure domains (racks, say) have a function of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from math import comb

import numpy as np
import numpy.typing as npt

from twinckpt.core.placement import Placement

_MAX_SUBSETS = 5_000_000
_BATCH_CELLS = 1 << 21


@dataclass(frozen=True, slots=True)
class Estimate:
    """A Monte Carlo estimate of a probability; `standard_error` is that of a proportion."""

    probability: float
    standard_error: float
    num_samples: int


def corollary_1(num_machines: int, num_replicas: int, num_lost: int) -> float:
    """Return the paper's closed form for group placement (§4, Corollary 1).

    Pr = 1 for k < m; Pr ≥ max{0, 1 − N·C(N − m, k − m) / (m·C(N, k))} for k ≥ m, which is
    exact for m ≤ k < 2m, where at most one group can be lost whole.
    """
    _check(num_machines, num_replicas, num_lost)
    if num_lost < num_replicas:
        return 1.0
    return _union_bound(num_machines, num_machines / num_replicas, num_replicas, num_lost)


def ring_union_bound(num_machines: int, num_replicas: int, num_lost: int) -> float:
    """Return the lower bound for ring placement that the paper's Fig. 9 plots as its value.

    A ring has N windows of m machines, and two of them are lost together often enough for
    the bound to be loose beyond k = m.
    """
    _check(num_machines, num_replicas, num_lost)
    if num_lost < num_replicas:
        return 1.0
    num_windows = 1 if num_replicas == num_machines else num_machines
    return _union_bound(num_machines, num_windows, num_replicas, num_lost)


def exact_probability(kind: str, num_machines: int, num_replicas: int, num_lost: int) -> float:
    """Return the exact probability for any k, by counting in integers.

    group: inclusion and exclusion over the groups lost whole.
    ring: cyclic arrangements without m lost machines in a row.
    mixed: both, summed over how many of the lost machines are the ring's.

    Takes time proportional to k/m terms (mixed: 2m times that), so N = 10,000 is no problem.
    """
    _check(num_machines, num_replicas, num_lost)
    n, m, k = num_machines, num_replicas, num_lost
    if kind == "group":
        if n % m:
            raise ValueError(f"kind=group: num_machines={n} is no multiple of num_replicas={m}")
        good = _count_groups(n, m, k)
    elif kind == "ring":
        good = _count_ring(n, m, k)
    elif kind == "mixed":
        in_groups = m * (n // m - 1)
        in_ring = n - in_groups
        good = sum(
            _count_ring(in_ring, m, lost) * _count_groups(in_groups, m, k - lost)
            for lost in range(max(0, k - in_groups), min(in_ring, k) + 1)
        )
    else:
        raise ValueError(f"kind={kind!r}: must be one of group, ring, mixed")
    return good / comb(n, k)


def recovery_probability(placement: Placement, num_lost: int) -> float:
    """Return the exact probability for a placement; the order of its machines does not matter."""
    return exact_probability(
        placement.kind, placement.num_machines, placement.num_replicas, num_lost
    )


def probability_by_enumeration(placement: Placement, num_lost: int) -> float:
    """Try every set of k machines: for small clusters, and to check the other methods."""
    _check(placement.num_machines, placement.num_replicas, num_lost)
    total = comb(placement.num_machines, num_lost)
    if total > _MAX_SUBSETS:
        raise ValueError(
            f"{total} sets of {num_lost} of {placement.num_machines} machines: at most "
            f"{_MAX_SUBSETS} can be enumerated; use exact_probability or Monte Carlo"
        )
    groups = np.array(placement.replica_groups())
    subsets = combinations(range(placement.num_machines), num_lost)
    rows_per_batch = max(1, _BATCH_CELLS // groups.size)
    good = 0
    while batch := list(islice(subsets, rows_per_batch)):
        lost = np.zeros((len(batch), placement.num_machines), dtype=bool)
        np.put_along_axis(lost, np.array(batch, dtype=np.intp), True, axis=1)
        good += int(_survives(lost, groups).sum())
    return good / total


def probability_by_monte_carlo(
    placement: Placement, num_lost: int, num_samples: int, rng: np.random.Generator
) -> Estimate:
    """Draw `num_samples` sets of k machines with `rng`, in batches of bounded memory."""
    _check(placement.num_machines, placement.num_replicas, num_lost)
    if num_samples < 1:
        raise ValueError(f"num_samples={num_samples}: must be at least 1")
    groups = np.array(placement.replica_groups())
    rows_per_batch = max(1, _BATCH_CELLS // groups.size)
    good = 0
    for start in range(0, num_samples, rows_per_batch):
        rows = min(rows_per_batch, num_samples - start)
        order = rng.random((rows, placement.num_machines)).argsort(axis=1)
        lost = np.zeros(order.shape, dtype=bool)
        np.put_along_axis(lost, order[:, :num_lost], True, axis=1)
        good += int(_survives(lost, groups).sum())
    probability = good / num_samples
    return Estimate(
        probability, float(np.sqrt(probability * (1 - probability) / num_samples)), num_samples
    )


def survives(placement: Placement, lost: Sequence[int]) -> bool:
    """Return whether every shard survives in RAM when just these machines are lost."""
    return not any(set(group) <= set(lost) for group in placement.replica_groups())


def probability_by_domains(placement: Placement, domains: Sequence[object], num_lost: int) -> float:
    """Return Pr(every shard survives | k whole failure domains lost), by trying every set.

    Args:
        domains: failure domain of each machine.
        num_lost: k, the number of domains lost at once, each set equally likely.
    """
    if len(domains) != placement.num_machines:
        raise ValueError(f"{len(domains)} failure domains given: must be {placement.num_machines}")
    names = sorted(set(domains), key=str)
    total = comb(len(names), num_lost)
    if not 0 <= num_lost <= len(names) or total > _MAX_SUBSETS:
        raise ValueError(f"num_lost={num_lost} of {len(names)} domains: none or too many sets")
    good = 0
    for chosen in combinations(names, num_lost):
        lost = [machine for machine, domain in enumerate(domains) if domain in chosen]
        good += survives(placement, lost)
    return good / total


def _check(num_machines: int, num_replicas: int, num_lost: int) -> None:
    if not 1 <= num_replicas <= num_machines:
        raise ValueError(f"num_replicas={num_replicas}: must be in [1, {num_machines}]")
    if not 0 <= num_lost <= num_machines:
        raise ValueError(f"num_lost={num_lost}: must be in [0, {num_machines}]")


def _union_bound(num_machines: int, num_sets: float, num_replicas: int, num_lost: int) -> float:
    lost_with_a_given_set = comb(num_machines - num_replicas, num_lost - num_replicas)
    return max(0.0, 1 - num_sets * (lost_with_a_given_set / comb(num_machines, num_lost)))


def _survives(lost: npt.NDArray[np.bool_], groups: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """Return for each row of `lost` whether no group (row of `groups`) is lost whole."""
    lost_whole = np.all(lost[:, groups], axis=2)
    return np.logical_not(np.any(lost_whole, axis=1))


def _count_groups(n: int, m: int, k: int) -> int:
    """Count the sets of k of n machines that leave a machine in each of the n/m groups."""
    return sum(
        (-1) ** j * comb(n // m, j) * comb(n - j * m, k - j * m) for j in range(min(n, k) // m + 1)
    )


def _count_ring(n: int, m: int, k: int) -> int:
    """Count the sets of k of n machines in a ring without m neighbours among them.

    The n − k survivors cut the ring into as many runs of lost machines, each shorter than m.
    Sequences of runs are counted by inclusion and exclusion; turning one around the ring
    gives n arrangements, and each arrangement arises once a survivor, hence n / (n − k).
    """
    survivors = n - k
    if survivors == 0:
        return 0
    sequences = sum(
        (-1) ** j * comb(survivors, j) * comb(k - j * m + survivors - 1, survivors - 1)
        for j in range(min(survivors, k // m) + 1)
    )
    return n * sequences // survivors
