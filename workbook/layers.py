"""Curves over the layers of a language model."""

import pandas as pd

from viral_core.specs import block_at


def slower_middle(cells: pd.DataFrame, depth: int) -> dict[str, pd.DataFrame]:
    """How much less a curve falls from a quarter of the depth to the middle than before it, and than after it.

    `cells` are the values of one run, (layer, seed) x image, of layers 0 to `depth`.  Each change is taken over as many
    blocks as a quarter of the depth has.  By part, (seed) x image: "than before", "than after".
    """
    quarter, half = block_at(0.25, depth), block_at(0.5, depth)
    before, middle, after = (
        (cells.loc[second] - cells.loc[first]) * quarter / (second - first)
        for first, second in ((0, quarter), (quarter, half), (half, depth))
    )
    return {"than before": middle - before, "than after": middle - after}
