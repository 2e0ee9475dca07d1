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
# lists them in our words, each with its section, the quantity that decides it, the side of a threshold that it is
# claimed on and the *smallest effect of interest*. Not all of it was fixed before the first results of this world:
# claims and premises were added, widened, narrowed and reworded after further readings of the paper, and the smallest
# effects of MME and of time and the way in which the noise of a seed is told were settled later, results known; the
# ledger says which.
#
# > *The paper's own value* of a quantity stands beside ours, grey. It has no interval.
#
# Each notebook has computed its own claims; here they are put together and decided by one rule.

# %% tags=["parameters"]
profile = "laptop"

# %%
import math

import numpy as np
import pandas as pd
from IPython.display import Markdown

from viral_core.measure.intervals import p_difference, p_equivalence
from workbook import claims, plots, scores, tables
from workbook.notebook import begin, show

settings, out = begin(profile, "claims")

# %% [markdown]
# ## The rule
#
# With $d$ the measured quantity minus the threshold, $\mathrm{se}$ its standard error over questions and seeds, and
# $\delta$ the smallest effect of interest (2 points of accuracy, 0.02 CKNNA, 5 % of an entropy, ...; the table below):
#
# - **no difference** if $|d| \ge \delta$ can be excluded (two one-sided tests), whether or not $d$ differs from 0;
# - else **reproduced** if $d$ differs from 0 on the claimed side, **contradicted** on the other;
# - else **inconclusive**; **not run** if something is missing.
#
# Two things to keep in mind. What is reproduced or contradicted differs from the threshold, but its estimate may be
# smaller than $\delta$, where larger values are not excluded: more data may turn it into no difference. And with one
# seed (column *seeds*; hollow in the figure) the interval is over questions or images alone: what another seed would
# give may lie outside it, so that nothing is decided, unless no training enters the quantity.
#
# How much a seed moves a difference of scores is told by those runs of a notebook's claims together that have the same
# run without alignment as their reference, as `main_table` shows; of relative gains, checkpoints, premises and what is
# no score, by their own seeds.
#
# Two one-sided tests at 5 % ask whether the 90 % interval lies within $\delta$; tables and figures show the 95 %
# interval, which is wider. The correction below asks for more than either.

# %%
show(p_difference)
show(p_equivalence)

# %% [markdown]
# A ledger of so many rows at 5 % would decide several by chance alone. The rate of false ones is
# controlled over the whole ledger, among the differences and among the cases of no difference; in a part of it, such as
# the benchmarks, it may be higher. While runs are missing the ledger is an interim one: it decides when all are in.

# %%
show(claims.decide)
pd.Series(claims.ledger()[1], name="smallest effect of interest").rename_axis("unit").to_frame()

# %% [markdown]
# ## Every claim and what decided it

# %%
rows = claims.read(profile)
ledger = claims.decide(rows)
ledger.to_csv(out / "claims.csv", index=False, float_format="%.6g")
caption = f"{settings.label}; the paper's MME is of 2,800 points, our unit says of how many ours is"
shown = claims.styled(ledger, caption)
shown

# %% [markdown]
# ## All of them at a glance
#
# Each row in units of its smallest effect of interest: left of -1 and right of 1 is an effect that would matter. The
# claimed side is to the right. The parts of a claim are in the table's order; colours are verdicts among all rows, so
# that an interval may exclude 0 and be grey. The paper's MME has 2,800 points, and so
# its gains have the smallest effect of that scale, whatever ours is.

# %%
ours = ledger["unit"].map(claims.smallest)
printed = ledger["unit"].mask(ledger["unit"].str.startswith("MME"), "MME points of 2800").map(claims.smallest)
side = ledger["expect"].map({"above": 1, "below": -1})
families = {"premise": "premises", "": "the paper's claims", "control": "our controls"}
family = ledger["section"].where(ledger["section"].isin(families), "").map(families)
ledger["family"] = pd.Categorical(family, families.values())
effects = ledger[["family", "claim", "part", "verdict", "seeds"]].copy()
for column, smallest in {"value": ours, "low": ours, "high": ours, "paper": printed}.items():
    effects[column] = side * (ledger[column] - ledger["threshold"]) / smallest
effects = effects[effects["value"].notna()].sort_values("family", kind="stable")

# %%
if len(effects):
    figure = plots.forest(effects, claims.COLOURS, scores.TITLES)  # claims
    caption = f"{settings.label}; 95 % intervals, {plots.seeds(effects['seeds'])} (hollow: one, or no training in it)"
    figure.suptitle(plots.wrap(caption, 100), fontsize="small")
    plots.save(figure, out, "claims")

# %% [markdown]
# ## How many were decided

# %%
summary = pd.crosstab(ledger["verdict"], ledger["family"]).reindex(claims.VERDICTS, fill_value=0)
summary["all"] = summary.sum(axis=1)
summary["of these with one seed"] = ledger.loc[ledger["seeds"] == 1, "verdict"].value_counts()
summary = summary.fillna(0).astype(int)
summary.loc["rows"] = summary.sum()
summary.to_csv(out / "summary.csv")
number = summary.loc[list(claims.DECIDED), "all"].sum()
print(f"decided: {number} of {len(ledger)} rows, {100 * number / len(ledger):.1f} %")
summary

# %% [markdown]
# Rows of scores are decided together with rows of hidden states, most of which are clear cases, and a clear case makes
# room for others. Of the decided rows of scores, these would be open if there were no other rows:

# %%
scored = ledger["id"].map(lambda name: claims.ledger()[0][name].run is not None)
decided = ledger[scored & ledger["verdict"].isin(claims.DECIDED)]
alone = claims.decide(rows[scored])["verdict"]
among = decided[~alone[decided.index].isin(claims.DECIDED)]
print(f"{len(among)} of {len(decided)} decided rows of scores")
among[["id", "part", "value", "low", "high", "verdict"]].round(2)

# %% [markdown]
# ## One line for each claim
#
# What was measured of it, with 95 % intervals, by verdict; in points of accuracy where no unit is given. `claims.md` in
# the folder of results is this table.


# %%
def told(parts: pd.DataFrame) -> str:
    """What was measured of the parts of a claim, as one sentence."""
    words = []
    for part in parts.itertuples():
        measured = ""  # where nothing was, which its verdict says
        if not pd.isna(part.value):
            digits = max(0, 1 - math.floor(math.log10(claims.smallest(part.unit))))
            unit = part.unit.removeprefix("points").removeprefix("MME points ")
            measured = f"{tables.number(part.value, part.low, part.high, digits, sign=True)} {unit}".strip()
        words.append(f"{scores.TITLES.get(part.part, part.part)} {measured}".strip())
    return ", ".join(words)


by_verdict = ledger.assign(verdict=pd.Categorical(shown.data["verdict"], [*claims.VERDICTS, "at the threshold"]))
lines = ["| section | claim | verdict |", "| --- | --- | --- |"]
for _, claim in by_verdict.groupby("id", sort=False):
    verdicts = (
        f"**{verdict}**: {told(parts)}".removesuffix(": ") for verdict, parts in claim.groupby("verdict", observed=True)
    )
    lines.append(f"| {claim['section'].iat[0]} | {claim['claim'].iat[0]} | {'; '.join(verdicts)} |")
(out / "claims.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
Markdown(filename=out / "claims.md")

# %% [markdown]
# ## What has no row
#
# Sentences of the paper that the ledger does not decide:
#
# - aligned embeddings are "more structured and semantically coherent" (5.6, F): pictures, and beside them a number of
#   only a few of them, in `qualitative`;
# - the loss of detail leads "to the degradation of spatial reasoning capacity" (1, 2): the rows above ask for the loss
#   and for the scores, each alone; what one has to do with the other no comparison of two runs tells;
# - VIRAL looks "more accurately and locally on regions relevant" (5.4, F.3): how local its attention is has rows,
#   whether it is on what was asked about is seen in the maps of `attention` alone;
# - gains of "up to 17.3 %" and a "scaling trend" (Abstract, 5.2) are of the paper's own numbers: `paper_arithmetic`;
# - "only about a 3% overhead in total training time" (5.7): a step's, on a GPU, is in `efficiency`; the row here is of
#   cached features.

# %% [markdown]
# ## Premises
#
# A premise holds where so many of its rows are reproduced as the ledger asks of it, fails where that is no longer
# possible, and is open else, such as where a row lies at its threshold.

# %%
verdicts = ledger[ledger["section"] == "premise"].groupby("id", sort=False)["verdict"]
premises = verdicts.value_counts().unstack(fill_value=0).reindex(columns=claims.VERDICTS, fill_value=0)
premises.insert(0, "state", {name: claims.state(claims.ledger()[0][name], rows) for name, rows in verdicts})
premises.join(ledger.drop_duplicates("id").set_index("id")["claim"])

# %% [markdown]
# What is decided above means something for the paper only where its premises hold: the last column of the ledger names
# those of a claim that fail or are open. Rows of the claims by verdict, by what becomes of the premises that they name:

# %%
tested = ledger[ledger["section"] != "premise"].copy()
named = tested["id"].map(lambda name: len(claims.ledger()[0][name].needs))
become = {
    "none named": named == 0,
    "hold": tested["fails"] == "",
    "one or more fail": tested["fails"].str.contains("fails"),
}
tested["premises"] = np.select(list(become.values()), list(become), "none fails, but one or more are open")
pd.crosstab(tested["verdict"], tested["premises"]).reindex(claims.VERDICTS, fill_value=0)
