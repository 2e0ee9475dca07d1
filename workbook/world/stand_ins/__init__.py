"""The stand-ins of the paper's models: tiny models of the same classes, pretrained on the embedded world.

A folder each, as `from_pretrained` reads it.  config.json, preprocessor_config.json and the encoders' tokenizers define
the models; `python -m workbook.world.stand_ins` makes the rest again from nothing: weights, the language models'
tokenizer, and `metrics.json` (loss, probes, device, provenance).
"""

from pathlib import Path

FOLDER = Path(__file__).parent
