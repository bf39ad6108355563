# %% [markdown]
# # Does training go on as if nothing had happened?
# The loss without failures and with the loss of a rank, a machine and a replica group. Equal curves
# lie on each other.
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
show.figure("training", data)

# %% [markdown]
# ## The numbers
# From one run per method, so there are no intervals.

# %%
show.metrics(data, "training")

# %% [markdown]
# ## The samples behind them

# %%
show.spread(data, "training", "bits_per_byte")

# %% [markdown]
# ## Where they come from

# %%
origin = data.provenance.get("training", {})
{key: origin.get(key) for key in ("date", "git", "hardware", "config_sha256", "seeds")}
