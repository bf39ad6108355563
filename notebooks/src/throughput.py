# %% [markdown]
# # What is left of the training speed?
# Iterations per second without checkpoints, with checkpoints to disk and to peers' RAM, in
# alternating blocks.
#
# Results: `TWINCKPT_RESULTS`, or `results/default`. `docs/results-schema.md` says what each
# clock starts and stops on.

# %%
from twinckpt.analysis import show
from twinckpt.analysis.notebook import open_results

data = open_results()

# %% [markdown]
# ## The figure

# %%
show.figure("throughput", data)

# %% [markdown]
# ## The numbers
# Medians over repeats of the slowest rank, with 95 % bootstrap intervals.

# %%
show.metrics(data, "throughput")

# %% [markdown]
# ## The samples behind them

# %%
show.spread(data, "throughput", "iterations_per_s")

# %% [markdown]
# ## Where they come from

# %%
origin = data.provenance.get("throughput", {})
{key: origin.get(key) for key in ("date", "git", "hardware", "config_sha256", "seeds")}
