"""Write the embedded world in the real on-disk formats: LLaVA's captions and instruction mix, benchmarks, a probe set.

Layout under the folder, as LLaVA's own recipe has it:

    llava_pretrain/blip_laion_cc_sbu_558k.json, llava_pretrain/images/      stage 1: one caption per image
    llava_instruct/llava_v1_5_mix665k.json,     llava_instruct/images/      stage 2: conversations, some in words only
    llava_instruct/truth/                                                   for workbook.world.oracle
    benchmarks/                                                             see workbook.benchmarks
    probes/{train,val,test}/images/, probes/{train,val,test}/labels.npz     see `write_probes`

Training and test scenes are kept apart by their content (`Scene.split`), whatever the seeds.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from viral_core.templates import IMAGE_MARKER
from workbook.world import questions
from workbook.world.benchmarks import write_benchmarks
from workbook.world.oracle import truth_image
from workbook.world.render import JPEG_QUALITY, LABELS, draw, render, token_labels
from workbook.world.scenes import CATEGORIES, draw_scenes


def turns(items: list[questions.QA], context: str) -> list[dict]:
    """LLaVA's turns; `context`, the image's marker or a description, stands before the first question."""
    conversation = []
    for i, qa in enumerate(items):
        value = f"{context}\n{qa.text}" if i == 0 else qa.text
        conversation += [{"from": "human", "value": value}, {"from": "gpt", "value": qa.reply}]
    return conversation


def captioning(text: str) -> list[dict]:
    """One turn that asks for the caption."""
    ask = f"Write a caption for this photo.\n{IMAGE_MARKER}"
    return [{"from": "human", "value": ask}, {"from": "gpt", "value": text}]


def write_captions(folder: Path, n: int, seed: int) -> None:
    """Stage 1: `n` images with a caption each, in the format of LCS-558K."""
    images, rng, entries = folder / "images", np.random.default_rng((seed, 7)), []
    images.mkdir(parents=True)
    for i, scene in enumerate(tqdm(draw_scenes(n, (seed, 1)), "captioned scenes", total=n)):
        name = f"{i:06d}.jpg"
        render(scene).save(images / name, quality=JPEG_QUALITY)
        conversation = captioning(questions.caption(scene, rng))
        entries.append({"id": f"caption-{i:06d}", "image": name, "conversations": conversation})
    (folder / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(entries), encoding="utf-8")


def write_conversations(folder: Path, n: int, text_only: int, most: int, seed: int) -> None:
    """Stage 2: `n` images with up to `most` questions each, and `text_only` scenes that are described instead."""
    images, truth, rng, entries = folder / "images", folder / "truth", np.random.default_rng((seed, 3)), []
    images.mkdir(parents=True)
    truth.mkdir()
    for i, scene in enumerate(tqdm(draw_scenes(n, (seed, 2)), "instruction scenes", total=n)):
        name, (image, masks) = f"{i:06d}.jpg", draw(scene)
        image.save(images / name, quality=JPEG_QUALITY)
        truth_image(token_labels(scene, masks)).save(truth / f"{i:06d}.png")
        conversation = turns(questions.conversation(scene, rng, most), IMAGE_MARKER)
        entries.append({"id": f"scene-{i:06d}", "image": name, "conversations": conversation})
    for i, scene in enumerate(draw_scenes(text_only, (seed, 4))):
        conversation = turns(questions.conversation(scene, rng, most), questions.described(scene))
        entries.append({"id": f"text-{i:06d}", "conversations": conversation})
    (folder / "llava_v1_5_mix665k.json").write_text(json.dumps(entries), encoding="utf-8")


def write_probes(folder: Path, sizes: Mapping[str, int], seed: int) -> None:
    """Pictures whose every token is labelled, for linear probes: `sizes` scenes of each split.

    `labels.npz` of a split holds `render.token_labels` as uint8 (scenes, 64) each, `names` of the images (scenes,) and
    `categories`, the names that the labels of `category` count from 1.
    """
    for stream, (split, n) in enumerate(sizes.items()):
        images = folder / split / "images"
        images.mkdir(parents=True)
        names, labels = [], []
        for i, scene in enumerate(draw_scenes(n, (seed, 8, stream), split)):
            image, masks = draw(scene)
            names.append(f"{i:05d}.jpg")
            image.save(images / names[-1], quality=JPEG_QUALITY)
            labels.append(token_labels(scene, masks))
        arrays = {label: np.stack([row[label] for row in labels]) for label in LABELS}
        np.savez_compressed(
            folder / split / "labels.npz", names=names, categories=[c.name for c in CATEGORIES], **arrays
        )


def write_world(
    folder: str | Path,
    seed: int,
    *,
    captions: int,
    conversations: int,
    turns: int,
    text_only: int,
    benchmarks: Mapping[str, int],
    probes: Mapping[str, int],
) -> None:
    """Write everything under `folder`, in the layout above; numbers are scenes, and rows per benchmark."""
    folder = Path(folder)
    for part in ("benchmarks", "llava_pretrain", "llava_instruct", "probes"):
        shutil.rmtree(folder / part, ignore_errors=True)  # what an interrupted call has left
    write_benchmarks(folder / "benchmarks", benchmarks, seed)
    write_captions(folder / "llava_pretrain", captions, seed)
    write_conversations(folder / "llava_instruct", conversations, text_only, turns, seed)
    write_probes(folder / "probes", probes, seed)
