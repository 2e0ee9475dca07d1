"""What the paper's figures measure.

- `cknna`, `cknna_batch`, `clamp_outliers`, `layerwise_cknna`: similarity to the encoder's features (Figure 2(d))
- `spatial_entropy`, `spatial_entropies`, `generate_with_attention`, `question_entropies`,
  `entropy_per_head`, `layerwise_entropy`: attention (Figure 4)
- `PatchPermutation`: shuffled visual features (Table 3)
- `pca_map`, `pca_maps`: colours of visual tokens (Figure 5)
- `export_states`, `ExportedStates`: hidden states at the visual positions, on disk
- `summarise`: mean and confidence interval of a column of the tidy tables that these return
"""

from viral_core.measure.attention import (
    entropy_per_head,
    generate_with_attention,
    layerwise_entropy,
    question_entropies,
    spatial_entropies,
    spatial_entropy,
)
from viral_core.measure.cknna import cknna, cknna_batch, clamp_outliers
from viral_core.measure.pca import pca_map, pca_maps
from viral_core.measure.permutation import PatchPermutation
from viral_core.measure.states import ExportedStates, export_states, layerwise_cknna
from viral_core.measure.tables import summarise

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
    "pca_map",
    "pca_maps",
    "question_entropies",
    "spatial_entropies",
    "spatial_entropy",
    "summarise",
]
