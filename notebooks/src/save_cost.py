# %% [markdown]
# # What does a checkpoint cost?
# The time the training loop waits, and the time until the copy is recoverable, for disk (fsynced)
# and for RAM (own machine, all replicas), at equal bytes.
#
# Results: `TWINCKPT_RESULTS`, or `results/default`. `docs/results-schema.md` says what each
# clock starts and stops on.

# %%
from twinckpt.analysis import save_sweep, show
from twinckpt.analysis.notebook import open_results

data = open_results()

# %% [markdown]
# ## The figure

# %%
show.figure("save_cost", data)

# %% [markdown]
# ## The numbers
# Medians over repeats of the slowest rank, with 95 % bootstrap intervals.

# %%
show.metrics(data, "save_cost")

# %% [markdown]
# ## By size of state
# Milliseconds until recoverable with nothing else to do; one column per size, in MiB per rank.

# %%
save_sweep.milliseconds(data, "sweep_done_s")

# %% [markdown]
# ## The samples behind them

# %%
show.spread(data, "save_cost", "stall_s")

# %% [markdown]
# ## Where they come from

# %%
origin = data.provenance.get("save_cost", {})
{key: origin.get(key) for key in ("date", "git", "hardware", "config_sha256", "seeds")}
