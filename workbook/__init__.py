"""The workbook of the paper VIRAL: profiles, pipeline, benchmarks, tables and figures, around `viral_core`."""

import os

import viral_core  # noqa: F401  (before anything imports torchvision: see viral_core._torchvision)

# Where a checkpoint has .bin weights only, transformers would ask a service on the network to convert them, each time.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
