# %% [markdown]
# # What if: planning checkpoints for a cluster
# The numbers of a cluster go in, a recommendation comes out, as with `twinckpt plan`. It is a
# prediction from the numbers below, not a measurement; change them and run again.

# %%
from dataclasses import replace

from twinckpt.analysis import show
from twinckpt.core.planning import ClusterFacts

cluster = ClusterFacts(
    num_machines=16,
    ranks_per_machine=8,
    bytes_per_rank=9.4 * 2**30,
    network_bytes_per_s=400e9 / 8,  # of one machine
    storage_bytes_per_s=20e9 / 8,  # of all machines together
    copy_bytes_per_s=50e9,
    iteration_s=62.0,
    failures_per_day=0.24,
    memory_bytes=1152e9,  # of one machine
)

# %% [markdown]
# ## The plans
# This is the GEMINI paper's cluster: 16 p4d machines, 1.5 % of which fail each day, training a
# model of 100 billion parameters.

# %%
show.plans(cluster)

# %%
show.plan_figure(cluster)

# %% [markdown]
# ## A thousand such machines
# Storage grows with the number of machines, and so do failures.

# %%
thousand = replace(
    cluster,
    num_machines=1000,
    failures_per_day=15.0,
    storage_bytes_per_s=1000 / 16 * cluster.storage_bytes_per_s,
)
show.plans(thousand)

# %% [markdown]
# ## The same with warm spares
# There is no replacement to wait for, and processes are forked from a warm image.

# %%
show.plans(replace(thousand, replacement_s=0.0, warm_up_s=30.0))

# %% [markdown]
# ## A tenth of the network

# %%
show.plans(replace(thousand, network_bytes_per_s=thousand.network_bytes_per_s / 10))

# %% [markdown]
# ## All machines in one rack
# One failure in a hundred takes the rack, with every replica, so drains become frequent.

# %%
show.plans(replace(thousand, num_racks=1, rack_share=0.01))
