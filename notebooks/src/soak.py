# %% [markdown]
# # Does a training under random failures end as if nothing had happened?
# Ranks, warm parents, worker agents, machines and roots are killed at random moments; then the
# same training runs undisturbed.
#
# Results: `TWINCKPT_RESULTS`, or `results/default`. `docs/results-schema.md` says what each clock
# starts and stops on.

# %%
from twinckpt.analysis import show
from twinckpt.analysis.notebook import open_results

data = open_results()

# %% [markdown]
# ## The figure

# %%
show.figure("soak", data)

# %% [markdown]
# ## The numbers

# %%
show.metrics(data, "soak")

# %% [markdown]
# ## The failures
# Seconds after the first commit.

# %%
show.soak_failures(data)

# %% [markdown]
# ## What the processes hold

# %%
show.soak_memory(data)

# %% [markdown]
# ## Where they come from

# %%
origin = data.provenance.get("soak", {})
{key: origin.get(key) for key in ("date", "git", "hardware", "config_sha256", "seeds")}
