"""What the paper's figures measure.

- `cknna`, `cknna_batch`, `clamp_outliers`, `layerwise_cknna`: similarity to the encoder's features (Figure 2(d))
- `spatial_entropy`, `spatial_entropies`, `generate_with_attention`, `question_entropies`,
  `entropy_per_head`, `layerwise_entropy`: attention (Figure 4)
- `PatchPermutation`, `permuted_accuracy`: shuffled visual features (Table 3)
- `pca_map`, `pca_maps`: colours of visual tokens (Figure 5)
- `export_states`, `ExportedStates`: hidden states at the visual positions, on disk
- `learning_curves`, `training_cost`, `step_costs`, `read_log`: what a run's own log says (Figure 6)
- `summarise`: mean and confidence interval of a column of the tidy tables that these return
"""

from viral_core.metrics.attention import (
    entropy_per_head,
    generate_with_attention,
    layerwise_entropy,
    question_entropies,
    spatial_entropies,
    spatial_entropy,
)
from viral_core.metrics.logs import learning_curves, read_log, step_costs, training_cost
from viral_core.metrics.pca import pca_map, pca_maps
from viral_core.metrics.permutation import PatchPermutation, permuted_accuracy
from viral_core.metrics.similarity import cknna, cknna_batch, clamp_outliers
from viral_core.metrics.states import ExportedStates, export_states, layerwise_cknna
from viral_core.metrics.tables import summarise

__all__ = [
    "ExportedStates",
    "PatchPermutation",
    "clamp_outliers",
    "cknna",
    "cknna_batch",
    "entropy_per_head",
    "export_states",
    "generate_with_attention",
    "layerwise_cknna",
    "layerwise_entropy",
    "learning_curves",
    "pca_map",
    "pca_maps",
    "permuted_accuracy",
    "question_entropies",
    "spatial_entropies",
    "spatial_entropy",
    "step_costs",
    "summarise",
    "training_cost",
    "read_log",
]
