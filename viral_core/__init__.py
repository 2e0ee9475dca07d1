"""VIRAL workbook: visual representation alignment for multimodal language models, measured; README.md has the map."""

import sys

from viral_core._torchvision import BeforeTorchvision

sys.meta_path.insert(0, BeforeTorchvision())
