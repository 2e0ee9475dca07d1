"""What every measurement of a run starts from: its images and prompts in batches."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from viral_core.images import open_rgb, to_rgb
from viral_core.tap import base_llava
from viral_core.tiles import view_of


def square_side(n: int) -> int:
    """Side of a square grid of n tokens; ValueError where n is not a square."""
    side = math.isqrt(n)
    if side * side != n:
        raise ValueError(f"{n} image tokens are not a square grid: pass images that the model reads as one square")
    return side


def batches(
    model, processor, images: Sequence, prompts: str | Sequence[str], batch_size: int, task: str
) -> Iterator[tuple[slice, dict]]:
    """Encode images and prompts batch by batch, behind a progress bar over the images, called `task`.

    Images are PIL's or paths; each is padded to a square (not for LLaVA-NeXT), as in training. Prompts are as many, or
    one for all, each with one `<image>`. Yields a slice into `images` and the processor's tensors, padded on the left,
    on the model's device and in its dtype.

    ValueError without images, for another number of prompts, or for a model in training mode; FileNotFoundError, before
    any work, for missing images.
    """
    llava = base_llava(model)
    if llava.training:
        raise ValueError("the model is in training mode, its dropout would be measured too: call model.eval() first")
    prompts = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
    if not images or len(images) != len(prompts):
        raise ValueError(f"{len(images)} images and {len(prompts)} prompts: every image needs one prompt")
    paths = [Path(image) for image in images if not isinstance(image, Image.Image)]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"{len(missing)} of {len(images)} images are missing, the first: {missing[0]}")
    view = view_of(processor)
    with tqdm(total=len(images), desc=task, unit="image", disable=not task) as bar:
        for start in range(0, len(images), batch_size):
            chosen = slice(start, min(start + batch_size, len(images)))
            opened = [to_rgb(one) if isinstance(one, Image.Image) else open_rgb(one) for one in images[chosen]]
            inputs = processor(
                images=[view.prepare(image) for image in opened],
                text=prompts[chosen],
                padding=True,
                padding_side="left",
                return_tensors="pt",
            )
            yield chosen, inputs.to(llava.device, llava.dtype)
            bar.update(chosen.stop - start)
