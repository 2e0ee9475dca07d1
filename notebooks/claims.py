# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The paper's claims, one by one
#
# **Question.** Which of the paper's claims do the runs of this profile reproduce? The ledger `workbook/claims.yaml`
# lists them in our words, each with its section and the quantity that decides it, before anything has been run.
#
# **Rule.** A claim says on which side of a threshold (0 unless stated) a quantity lies: **reproduced** where it does,
# **contradicted** where it lies on the other side. Smaller than the smallest effect of interest, which the ledger
# states: **no difference**. Otherwise **inconclusive**, or **not run**. Differences are paired, over questions or
# images and over seeds. At most 5 % of all decisions are expected to be false: the p-values of all rows are adjusted
# together. A claim whose premises do not hold says so in its row.
#
# > *The paper's own value* of a quantity, where its tables give one, stands apart in italics. It has no interval.
#
# What no number decides, such as whether a PCA map looks more structured (Section 5.6), is in the qualitative notebook.

# %% tags=["parameters"]
profile = "laptop"

# %%
from IPython.display import Markdown, display

import workbook.config
from workbook import claims
from workbook.paths import Paths

settings = workbook.config.load(profile)
out = Paths(profile).results("claims")
out.mkdir(parents=True, exist_ok=True)
display(Markdown(f"Profile **{profile}**: {settings.label}."))

# %% [markdown]
# ## Every claim and what decided it

# %%
ledger = claims.decide(claims.read(profile))
ledger.to_csv(out / "claims.csv", index=False, float_format="%.5g")
claims.styled(ledger, settings.label)

# %% [markdown]
# ## Verdicts per claim

# %%
counts = ledger.groupby(["id", "verdict"], sort=False).size().unstack(fill_value=0)
counts = counts.reindex(columns=claims.VERDICTS, fill_value=0)
counts.to_csv(out / "summary.csv")
display(counts)
counts.sum().rename("rows")
