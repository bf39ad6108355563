# %% [markdown]
# # How do stall, replication and recovery grow?
# Each time against the state of a rank and against the number of ranks, with a fitted power law.
# An exponent of 0 is constant, 1 proportional.
#
# Results: `TWINCKPT_RESULTS`, or `results/default`. `docs/results-schema.md` says what each clock
# starts and stops on, and what the intervals do not say.

# %%
from twinckpt.analysis import show
from twinckpt.analysis.notebook import open_results

data = open_results()

# %% [markdown]
# ## The figure

# %%
show.figure("scaling", data)

# %% [markdown]
# ## The exponents

# %%
show.metrics(data, "scaling")

# %% [markdown]
# ## The samples behind them

# %%
show.spread(data, "scaling", "done_s")

# %% [markdown]
# ## Where they come from

# %%
origin = data.provenance.get("scaling", {})
{key: origin.get(key) for key in ("date", "git", "hardware", "config_sha256", "seeds")}
