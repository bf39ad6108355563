# %% [markdown]
# # What could users take instead?
# The same state, ranks and clocks for this library and for what users would otherwise pick, in
# turn, in one run. Rivals are given the plain list of tensors and their recommended settings; ours
# is given the module and the optimizer.
#
# Results: `TWINCKPT_RESULTS`, or `results/default`; made by `snakemake --cores all peers`.
# `docs/results-schema.md` says what each clock starts and stops on.

# %%
from twinckpt.analysis import show
from twinckpt.analysis.notebook import open_results

data = open_results()

# %% [markdown]
# ## The figure

# %%
show.figure("peers", data)

# %% [markdown]
# ## The numbers
# Ratios above 1 say that the peer takes longer than we do.

# %%
show.metrics(data, "peers")

# %% [markdown]
# ## The samples behind them

# %%
show.spread(data, "peers", "done_s")

# %% [markdown]
# ## Where they come from, and who did not run

# %%
origin = data.provenance.get("peers", {})
{key: origin.get(key) for key in ("date", "git", "hardware", "config_sha256", "peers")}
