# %% [markdown]
# # Which losses does a placement survive?
# The probability that every shard is still in some machine's RAM when k machines are lost at once:
# by closed form, by enumeration, by Monte Carlo, and by killing every set of machines of a small
# cluster.
#
# Results: `TWINCKPT_RESULTS`, or `results/default`. `docs/results-schema.md` says what is computed
# and what is killed.

# %%
from twinckpt.analysis import placement, show
from twinckpt.analysis.notebook import open_results

data = open_results()

# %% [markdown]
# ## The figure
# Dots are Monte Carlo, crosses the shares of really killed sets after which all shards came back.

# %%
show.figure("placement", data)

# %% [markdown]
# ## The numbers

# %%
show.metrics(data, "placement")

# %% [markdown]
# ## The killed sets
# One row per cluster and number of machines lost: the share of sets that were recovered from RAM.

# %%
placement.killed_shares(data)

# %% [markdown]
# ## Where they come from

# %%
origin = data.provenance.get("placement", {})
{key: origin.get(key) for key in ("date", "git", "hardware", "config_sha256", "seeds")}
