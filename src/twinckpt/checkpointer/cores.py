"""How many threads of a rank may work at once."""

import os


def threads(most: int) -> int:
    """Return as many threads as each rank of this host has cores: at least one, at most `most`."""
    count = "WORLD_SIZE" if "TWINCKPT_ONE_HOST" in os.environ else "LOCAL_WORLD_SIZE"
    num_cores = len(os.sched_getaffinity(0)) // int(os.environ.get(count, "1"))
    return max(1, min(most, num_cores))
