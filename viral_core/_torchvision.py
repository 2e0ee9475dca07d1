"""Let a CUDA build of torchvision be imported beside a CPU build of torch.

The package index serves torchvision as a CUDA build only.  Beside a CPU torch its compiled library cannot be loaded,
and then `import torchvision` fails because the operators `nms` and `qnms` are unknown to torch.  Nothing here calls
them, so declaring them is enough.  Where the compiled library loads, nothing is changed.  The check runs when
torchvision is first imported, so that parts of the package that need no torch do not load it.
"""

import importlib.machinery
import sys
from pathlib import Path

_declared = []  # torch keeps a library's operators only while the Library object lives


class _BeforeTorchvision:
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


def install() -> None:
    """Prepare for torchvision; a second call, or one after torchvision was imported, does nothing."""
    if "torchvision" not in sys.modules and not any(isinstance(f, _BeforeTorchvision) for f in sys.meta_path):
        sys.meta_path.insert(0, _BeforeTorchvision())
