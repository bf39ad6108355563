# %% [markdown]
# # How far from the limits?
# Each operation of the library beside the plain memcpy or the plain TCP transfer of the same
# bytes; measured in one run, in alternation.
#
# Results: `TWINCKPT_RESULTS`, or `results/default`. `docs/results-schema.md` says what each
# clock starts and stops on.

# %%
from twinckpt.analysis import limits, show
from twinckpt.analysis.notebook import open_results

data = open_results()

# %% [markdown]
# ## The figure

# %%
show.figure("limits", data)

# %% [markdown]
# ## The numbers
# Ratios of medians over repeats of the slowest rank, with 95 % bootstrap intervals. The
# headline is the case with most ranks and the largest state.

# %%
show.metrics(data, "limits")

# %% [markdown]
# ## All cases

# %%
limits.table(data)

# %% [markdown]
# ## The samples behind them, in milliseconds
# `ranks4_mib64` is 4 ranks at once with 64 MiB each.

# %%
table = data.samples[(data.samples.experiment == "limits") & (data.samples.unit == "s")]
slowest = table.groupby(["method", "metric", "repeat"]).value.max()
(1000 * slowest.groupby(["metric", "method"]).median()).unstack().round(1)

# %% [markdown]
# ## Where they come from

# %%
origin = data.provenance.get("limits", {})
{key: origin.get(key) for key in ("date", "git", "hardware", "config_sha256", "seeds")}
