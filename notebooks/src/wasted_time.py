# %% [markdown]
# # How much of the time is training?
# The paper's published numbers, each beside our prediction from the paper's set-up; then goodput,
# simulated for `goodput.days`, for storage every three hours (Strawman), storage as often as it can
# (HighFreq), the paper's GEMINI, and twinckpt.
#
# Results: `TWINCKPT_RESULTS`, or `results/default`. `docs/results-schema.md` says what is
# simulated and which durations are the paper's and which this machine's.

# %%
from twinckpt.analysis import goodput, show
from twinckpt.analysis.notebook import open_results

data = open_results()

# %% [markdown]
# ## The paper's points, predicted
# No constant is fitted. A bound has no error; it holds or it does not.

# %%
show.paper_points()

# %% [markdown]
# ## Its other models and clusters
# Published or not, they follow from line rates and the models' shapes, and nothing else.

# %%
show.paper_predictions()

# %% [markdown]
# ## The figure
# Dots are simulated; lines are the closed form, which leaves out groups that are lost whole.

# %%
show.figure("wasted_time", data)

# %% [markdown]
# ## Goodput at the paper's failure rate
# One row per number of machines.

# %%
goodput.curves(data, "goodput", "gemini").round(4)

# %% [markdown]
# ## The numbers

# %%
show.metrics(data, "wasted_time")

# %% [markdown]
# ## Where they come from

# %%
origin = data.provenance.get("wasted_time", {})
{key: origin.get(key) for key in ("date", "git", "hardware", "config_sha256", "seeds")}
