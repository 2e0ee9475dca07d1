"""Let a CUDA build of torchvision be imported beside a CPU build of torch, as some package indices serve them.

Its compiled library cannot be loaded then, and `import torchvision` fails because torch does not know the operators
`nms` and `qnms`.  Nothing here calls them, so declaring them is enough.  The check runs when torchvision is first
imported, so that parts of the package that need no torch do not load it.
"""

import importlib.machinery
from pathlib import Path

_declared = []  # torch keeps a library's operators only while the Library object lives


class BeforeTorchvision:
    """A finder that never finds anything, but prepares torch the first time somebody asks for torchvision."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and not _declared:
            spec = importlib.machinery.PathFinder.find_spec(name)
            if spec is not None:
                _prepare(Path(spec.origin).parent)
        return None


def _prepare(package: Path) -> None:
    import torch

    try:
        torch.ops.load_library(next(package.glob("_C*.so"), package / "_C.so"))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
