"""The paper's measurements of any LLaVA or LLaVA-NeXT of transformers, on a folder of images: `workbook measure`.

cknna        similarity of the visual tokens to the encoder's features, layer by layer
attention    spatial entropy of the attention from the answer to the image, per layer and head
permutation  answers with the image's features in their order and shuffled, within each tile of a LLaVA-NeXT
pca          colours of the visual tokens in every layer, with a picture per image; of LLaVA-NeXT's whole image, tile 0
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from viral_core import distributed
from viral_core.checkpoints import load_whole, require_model
from viral_core.files import write_text
from viral_core.images import image_size
from viral_core.measure.attention import question_entropies
from viral_core.measure.inputs import batches
from viral_core.measure.pca import pca_map
from viral_core.measure.permutation import PatchPermutation
from viral_core.measure.states import layerwise_cknna, stream_states
from viral_core.run_folder import RUN
from viral_core.templates import IMAGE_MARKER, TEMPLATES, prompt
from viral_core.tiles import view_of

QUANTITIES = ("cknna", "attention", "permutation", "pca")
PERMUTATIONS, BATCH_SIZE = 5, 4


def measure(
    quantity: str,
    model_id: str,
    images: Path,
    out: Path,
    question: str = "Describe the image.",
    template: str | None = None,
    k: int = 10,
) -> Path:
    """Measure one of `QUANTITIES` and write a tidy table, `<quantity>.csv`, into `out`; returns the file.

    `model_id` is the folder or hub id of a LLaVA or LLaVA-NeXT, `images` a folder, of which all that Pillow reads are
    taken in the order of their names; `template` one of `viral_core.templates`, by default the model's own chat
    template.  ValueError: another kind of model or quantity, one without all weights, no chat template, or no images;
    OSError: no such model.
    """
    if quantity not in QUANTITIES:
        raise ValueError(f"no measurement {quantity!r}; there are: {', '.join(QUANTITIES)}")
    files = sorted(file for file in images.glob("*") if file.suffix.lower() in Image.registered_extensions())
    if not files:
        raise ValueError(f"{images} holds no image (a folder of .jpg, .png, ... is expected)")
    require_model(model_id)
    if Path(model_id, RUN).is_file():
        raise ValueError(f"{model_id} is a run: write it as a model first, python -m workbook export {model_id} FOLDER")
    kind = AutoConfig.from_pretrained(model_id).model_type
    if kind not in ("llava", "llava_next"):
        raise ValueError(f"{model_id} is a {kind}; llava and llava_next can be measured")
    processor = AutoProcessor.from_pretrained(model_id)
    text = _prompt(processor, question, template)
    model = load_whole(AutoModelForImageTextToText, model_id, dtype="auto").to(distributed.device()).eval()
    out.mkdir(parents=True, exist_ok=True)
    options = {"ids": [file.name for file in files], "batch_size": BATCH_SIZE}
    if quantity == "cknna":
        table = layerwise_cknna(model, processor, files, text, k=k, **options)
    elif quantity == "attention":
        table = question_entropies(model, processor, files, text, **options).rename(columns={"question": "image"})
    elif quantity == "permutation":
        table = _permutation(model, processor, files, text)
    else:
        table = _pca(model, processor, files, text, out)
    file = out / f"{quantity}.csv"
    write_text(file, table.to_csv(index=False))
    return file


def _prompt(processor, question: str, template: str | None) -> str:
    if template is not None:
        if template not in TEMPLATES:
            raise ValueError(f"no template {template!r}; there are: {', '.join(TEMPLATES)}")
        return prompt(TEMPLATES[template], f"{IMAGE_MARKER}\n{question}")
    if not processor.chat_template:
        raise ValueError(f"the model has no chat template: name one of {', '.join(TEMPLATES)} with --template")
    turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    return processor.apply_chat_template([turn], add_generation_prompt=True)


def _permutation(model, processor, files: list[Path], text: str) -> pd.DataFrame:
    """One row per image and variant: image, variant, response, changed (from the answer to the image as it is)."""
    rows, view = [], view_of(processor)
    for chosen, inputs in batches(model, processor, files, text, BATCH_SIZE, "permutation"):
        names = [file.name for file in files[chosen]]
        maps = [key for file in files[chosen] for key in view.keys(file.name, image_size(file))]
        original = _answers(model, processor, inputs)
        rows += [(name, "original", response, False) for name, response in zip(names, original, strict=True)]
        for number in range(PERMUTATIONS):
            with PatchPermutation(model, number) as permuted:
                permuted.set_samples(maps)
                responses = _answers(model, processor, inputs)
            for name, response, before in zip(names, responses, original, strict=True):
                rows.append((name, f"permuted-{number}", response, response != before))
    return pd.DataFrame(rows, columns=["image", "variant", "response", "changed"])


@torch.inference_mode()
def _answers(model, processor, inputs) -> list[str]:
    tokens = model.generate(**inputs, max_new_tokens=32, do_sample=False)
    texts = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _pca(model, processor, files: list[Path], text: str, out: Path) -> pd.DataFrame:
    """One row per image, layer and token: image, layer, row, column, red, green, blue (0 to 1)."""
    layers, frames = range(model.config.text_config.num_hidden_layers + 1), []
    for image in stream_states(model, processor, files, text, layers, BATCH_SIZE, "pca"):
        name, whole = files[image.position].name, image.states[:, image.tiles == 0]
        maps = [pca_map(state.float()) for state in whole]
        for layer, colours in zip(layers, maps, strict=True):
            row, column = np.indices(colours.shape[:2]).reshape(2, -1)
            frame = pd.DataFrame(colours.reshape(-1, 3), columns=["red", "green", "blue"])
            frames.append(frame.assign(image=name, layer=layer, row=row, column=column))
        strip = Image.fromarray((255 * np.concatenate(maps, 1)).astype(np.uint8))
        scale = max(1, 96 // maps[0].shape[0])
        strip.resize((strip.width * scale, strip.height * scale), Image.Resampling.NEAREST).save(out / f"{name}.png")
    columns = ["image", "layer", "row", "column", "red", "green", "blue"]
    return pd.concat(frames, ignore_index=True)[columns]
