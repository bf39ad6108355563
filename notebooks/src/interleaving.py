# %% [markdown]
# # What does checkpoint traffic cost an iteration?
# A training shares its emulated links with checkpoints: all at once before the forward pass
# (blocking), one chunk per idle span (naive), many chunks through one buffer (no pipeline), many
# through sub-buffers (the full schedule, the paper's Algorithm 2).
#
# Results: `TWINCKPT_RESULTS`, or `results/default`. `docs/results-schema.md` says what is real,
# what is emulated, and what each clock starts and stops on.

# %%
from twinckpt.analysis import interleaving, show
from twinckpt.analysis.notebook import open_results

data = open_results()

# %% [markdown]
# ## The figure
# Right: the median iteration of each scheme on one rank, with the link above and the CPU below;
# white is idle.

# %%
show.figure("interleaving", data)

# %% [markdown]
# ## The numbers
# Overheads are relative to iterations without checkpoints; the schedule's prediction is shown
# beside them.

# %%
show.metrics(data, "interleaving")

# %% [markdown]
# ## The profiled idle spans
# Milliseconds over the profiled iterations, by rank and span.

# %%
interleaving.profile_ms(data)

# %% [markdown]
# ## The samples behind them

# %%
show.spread(data, "interleaving", "iteration_s")

# %% [markdown]
# ## Where they come from

# %%
origin = data.provenance.get("interleaving", {})
{key: origin.get(key) for key in ("date", "git", "hardware", "config_sha256", "seeds")}
