"""The stand-ins of the paper's models: tiny models of the same classes, pretrained on the embedded world.

A folder each, as `from_pretrained` reads it, with `metrics.json` (recipe, loss, probes, device, provenance) beside the
weights.  `python -m workbook.world.stand_ins` makes them again from nothing.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
