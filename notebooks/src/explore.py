# %% [markdown]
# # A run, step by step
# What happened in a run, from its samples: recoveries as timelines, then the training run with
# its losses and stalls.
#
# Results: `TWINCKPT_RESULTS`, or `results/default`.

# %%
from twinckpt.analysis import show
from twinckpt.analysis.notebook import open_results

data = open_results()

# %% [markdown]
# ## What is there

# %%
show.contents(data)

# %% [markdown]
# ## One recovery of each kind
# From the kill to the first new step. `repeat` chooses which one.

# %%
show.recovery_timeline(data, repeat=0)

# %%
show.phases(data, repeat=0)

# %% [markdown]
# ## The training runs
# Above: the loss. Below: how long the call of `save` took after each step, where it was recorded.

# %%
show.training_timeline(data)

# %% [markdown]
# ## Any metric, any method

# %%
show.spread(data, "save_cost", "recoverable_s")
