"""Write a run as a standard LLaVA folder that transformers loads alone: LoRA merged, processor and template with it.

`LlavaForConditionalGeneration.from_pretrained(out)` and `AutoProcessor.from_pretrained(out)` need nothing of this
project.  The alignment head is a training device and stays behind; the chat template is the one of the training.

Images are padded to squares by transformers' `LlavaImageProcessor`, which pads with the mean colour of its own encoder.
That is the colour of the training for CLIP; for SigLIP it is grey, and images that are not square come out slightly
different at their padding, unless they are padded before (`viral_core.images.pad_to_square`).
"""

import json
from pathlib import Path

import torch
from transformers import LlavaImageProcessor, LlavaProcessor
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from viral_core.checkpoints import read_json
from viral_core.files import new_folder
from viral_core.run_folder import RUN, load_run
from viral_core.templates import Template


def export(folder: str | Path, out: str | Path, dtype: str = "float32") -> None:
    """Merge a run into its base and save it; `dtype` is that of the saved weights (merging is done in float32).

    FileNotFoundError: no run in `folder`.  FileExistsError: `out` holds something already.  ValueError: a run with a
    residual, which a plain LLaVA has no place for, or one in tiles.
    """
    folder, out = Path(folder), Path(out)
    if not (folder / RUN).is_file():
        raise FileNotFoundError(f"no {RUN} in {folder}: name the folder of a trained run")
    saved = read_json(folder / RUN, "train that run again")
    if saved["residuals"]:
        layers = ", ".join(str(residual["layer"]) for residual in saved["residuals"])
        raise ValueError(
            f"{folder} adds visual features to the hidden states of layer {layers} again (a residual), also when it "
            "answers; transformers' LLaVA has no place for that, and would answer differently without: load it with "
            "viral_core.run_folder.load_run"
        )
    if saved["base"]["tile_grids"]:
        raise ValueError(f"{folder} takes images in tiles (LLaVA-NeXT): only LLaVA-1.5 runs are exported")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: name a new folder")
    run = load_run(folder)
    run.aligned.remove()
    model = run.model.merge_and_unload() if hasattr(run.model, "merge_and_unload") else run.model
    model = model.requires_grad_(False).to(getattr(torch, dtype))
    model.config.dtype = dtype
    origin = {"run": str(folder), **{key: saved[key] for key in ("base", "template", "align", "seed")}}
    with new_folder(out) as temporary:
        model.save_pretrained(temporary)
        processor(run.processor, run.template).save_pretrained(temporary)
        (temporary / "exported_from.json").write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


def processor(trained: LlavaProcessor, template: Template) -> LlavaProcessor:
    """The run's processor with transformers' padding to squares and the run's template as chat template."""
    images = trained.image_processor
    kind = LlavaImageProcessorPil if type(images).__name__.endswith("Pil") else LlavaImageProcessor
    names = ("size", "crop_size", "do_center_crop", "do_resize", "resample", "do_rescale", "rescale_factor",
             "do_normalize", "image_mean", "image_std")  # fmt: skip
    settings = {name: value for name in names if (value := getattr(images, name, None)) is not None}
    return LlavaProcessor(
        kind(**{"do_center_crop": False, **settings}, do_pad=True),
        trained.tokenizer,
        patch_size=trained.patch_size,
        vision_feature_select_strategy=trained.vision_feature_select_strategy,
        num_additional_image_tokens=trained.num_additional_image_tokens,
        chat_template=chat_template(template),
    )


def chat_template(template: Template) -> str:
    """`template` in jinja, for `apply_chat_template`; images come first in their turn."""
    first = f"{template.system} " if template.system else ""
    user = "{% if message['role'] == 'user' %}"
    return (
        "{% for message in messages %}"
        f"{user}{{% if loop.first %}}{first}{{% endif %}}{template.user}:{{% endif %}} "
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for item in message['content'] if item['type'] == 'image' %}<image>\n{% endfor %}"
        "{% for item in message['content'] if item['type'] == 'text' %}{{ item['text'] }}{% endfor %}{% endif %}"
        f"{user} {template.assistant}:{{% else %}}{template.stop}{{% endif %}}"
        "{% endfor %}"
    )
