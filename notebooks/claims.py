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
# **Rule.** A claim says on which side of a threshold (0 unless stated) a quantity lies. Its 95 % interval lies on that
# side: **reproduced**; on the other side: **contradicted**; holds the threshold: **inconclusive**; something is
# missing: **not run**. Differences are paired: the same questions or images, and the same seeds; both are resampled.
# Every benchmark has a row and a verdict of its own. The tests are not corrected for their number: among rows without
# any effect behind them one in twenty is decided by chance.
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
ledger = claims.evaluate(profile, progress=False)
ledger.to_csv(out / "claims.csv", index=False, float_format="%.5f")
claims.styled(ledger, settings.label)

# %% [markdown]
# ## Verdicts per claim

# %%
counts = claims.summary(ledger)
counts.to_csv(out / "summary.csv")
counts.style.hide(axis="index").set_uuid("summary").set_caption(settings.label)

# %% [markdown]
# ## What this says
#
# Counted from the table above.

# %%
display(Markdown("\n".join(f"- {line}" for line in claims.conclusions(ledger))))
