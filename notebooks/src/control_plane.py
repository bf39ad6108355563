# %% [markdown]
# # Does any fault lose a committed step?
# The state machines of root and worker agents play thousands of clusters in virtual time, each with
# random faults, and invariants are checked after every event. Wrong rules are planted, to see that
# the checker notices them. Then the root's own time is measured, up to 10,000 machines.
#
# Results: `TWINCKPT_RESULTS`, or `results/default`. `docs/results-schema.md` says what is simulated
# and what is timed.

# %%
from twinckpt.analysis import control_plane, show
from twinckpt.analysis.notebook import open_results

data = open_results()

# %% [markdown]
# ## The figure

# %%
show.figure("control_plane", data)

# %% [markdown]
# ## The numbers

# %%
show.metrics(data, "control_plane")

# %% [markdown]
# ## The planted rules
# How many clusters it took until the checker noticed each; 0 would be a miss.

# %%
control_plane.mutants(data)

# %% [markdown]
# ## Where they come from

# %%
origin = data.provenance.get("control_plane", {})
{key: origin.get(key) for key in ("date", "git", "hardware", "config_sha256", "seeds")}
