"""What the notebooks read and conclude: measurements of a profile's runs as tidy tables with n, seeds and intervals.

- `reading`: what the stages have written; `not_run` names what is missing
- `scores`: the paper's six benchmarks, paired gains, the noise of the seed
- `curves`: over layers and training steps
- `permutation`: Table 3
- `tables`: the paper's tables beside ours
- `stand_ins`: what the embedded models have learned
- `qualitative`: states of runs and features of teachers for a few images
- `conclusions`: sentences computed from all these
"""

from workbook.results.conclusions import (
    difference_lines,
    disagreement_lines,
    drop_lines,
    efficiency_lines,
    gain_lines,
    missing_line,
    similarity_lines,
    verdict,
)
from workbook.results.curves import (
    costs,
    gpu_benchmarks,
    layer_curve,
    layer_difference,
    learning_curve,
    similarity_curve,
    training_logs,
)
from workbook.results.permutation import drop_differences, permutation_table
from workbook.results.reading import (
    aligned_layers,
    answers,
    attention_maps,
    measured,
    not_run,
    own_runs,
    similarity,
    stage_costs,
)
from workbook.results.scores import (
    TITLES,
    asked,
    constant_score,
    disagreements,
    gains,
    reference,
    scores,
    seed_noise,
)
from workbook.results.stand_ins import (
    language_accuracies,
    probe_accuracies,
    stand_in_lines,
)
from workbook.results.tables import side_by_side, styled, styled_drops

__all__ = [
    "TITLES",
    "aligned_layers",
    "answers",
    "asked",
    "attention_maps",
    "constant_score",
    "costs",
    "difference_lines",
    "disagreement_lines",
    "disagreements",
    "drop_differences",
    "drop_lines",
    "efficiency_lines",
    "gain_lines",
    "gains",
    "gpu_benchmarks",
    "language_accuracies",
    "layer_curve",
    "layer_difference",
    "learning_curve",
    "measured",
    "missing_line",
    "not_run",
    "own_runs",
    "permutation_table",
    "probe_accuracies",
    "reference",
    "scores",
    "seed_noise",
    "side_by_side",
    "similarity",
    "similarity_curve",
    "similarity_lines",
    "stage_costs",
    "stand_in_lines",
    "styled",
    "styled_drops",
    "training_logs",
    "verdict",
]
