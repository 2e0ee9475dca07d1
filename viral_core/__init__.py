"""VIRAL workbook: visual representation alignment for multimodal language models, measured.

The modules are small and do one thing each; README.md has the map.
"""

from viral_core import _torchvision

_torchvision.install()
