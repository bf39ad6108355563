# %% [markdown]
# # How long does recovery take?
# From SIGKILL to the first new step, split into phases, when a rank dies (own RAM), a machine dies
# (a peer's RAM), or a replica group dies (disk). Restarts are torchrun's own, or by fork. For
# comparison, torchrun restarts with checkpoints on disk, and with none.
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
show.figure("recovery_time", data)

# %% [markdown]
# ## The numbers
# Medians over repeats of the slowest rank, with 95 % bootstrap intervals.

# %%
show.metrics(data, "recovery_time")

# %% [markdown]
# ## The samples behind them

# %%
show.spread(data, "recovery_time", "duration_s")

# %% [markdown]
# ## Where they come from

# %%
origin = data.provenance.get("recovery_time", {})
{key: origin.get(key) for key in ("date", "git", "hardware", "config_sha256", "seeds")}
