"""Let a CUDA build of torchvision be imported beside a CPU build of torch, as some package indices serve them.

Its compiled library cannot be loaded then, and `import torchvision` fails because torch does not know the operators
`nms` and `qnms`.  Nothing here calls them, so declaring them is enough.  The check runs when torchvision is first
imported, so that parts of the package that need no torch do not load it.
"""

import importlib.machinery
from pathlib import Path


class BeforeTorchvision:
    """A finder that never finds anything, but prepares torch the first time somebody asks for torchvision."""

    operators = None  # torch keeps them only while this object lives

    def find_spec(self, name, path=None, target=None):
        spec = importlib.machinery.PathFinder.find_spec(name) if name == "torchvision" else None
        if spec is None or self.operators is not None:
            return
        import torch

        package = Path(spec.origin).parent
        try:
            torch.ops.load_library(next(package.glob("_C*.so"), package / "_C.so"))
        except OSError:
            self.operators = torch.library.Library("torchvision", "DEF")
            self.operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            self.operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
