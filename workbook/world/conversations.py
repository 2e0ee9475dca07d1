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
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from viral_core.files import write_text
from viral_core.templates import IMAGE_MARKER
from workbook.world import questions
from workbook.world.benchmarks import write_benchmarks
from workbook.world.oracle import truth_image
from workbook.world.render import JPEG_QUALITY, LABELS, draw, token_labels
from workbook.world.scenes import CATEGORIES, Scene, draw_scenes


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


def write_pictures(
    folder: Path, n: int, seed: tuple[int, ...], split: str = "train", digits: int = 6
) -> Iterator[tuple[str, Scene, np.ndarray]]:
    """Draw `n` scenes into a new folder; yields the stem of each picture's file, the scene, its objects' masks."""
    folder.mkdir(parents=True)
    for i, scene in enumerate(tqdm(draw_scenes(n, seed, split), str(folder), n)):
        image, masks = draw(scene)
        image.save(folder / f"{i:0{digits}d}.jpg", quality=JPEG_QUALITY)
        yield f"{i:0{digits}d}", scene, masks


def write_captions(folder: Path, n: int, seed: int) -> None:
    """Stage 1: `n` images with a caption each, in the format of LCS-558K."""
    rng, entries = np.random.default_rng((seed, 7)), []
    for name, scene, _ in write_pictures(folder / "images", n, (seed, 1)):
        conversation = captioning(questions.caption(scene, rng))
        entries.append({"id": f"caption-{name}", "image": f"{name}.jpg", "conversations": conversation})
    write_text(folder / "blip_laion_cc_sbu_558k.json", json.dumps(entries))


def write_conversations(folder: Path, n: int, text_only: int, most: int, seed: int) -> None:
    """Stage 2: `n` images with up to `most` questions each, and `text_only` scenes that are described instead."""
    rng, entries, truth = np.random.default_rng((seed, 3)), [], folder / "truth"
    truth.mkdir(parents=True)
    for name, scene, masks in write_pictures(folder / "images", n, (seed, 2)):
        truth_image(token_labels(scene, masks)).save(truth / f"{name}.png")
        conversation = turns(questions.conversation(scene, rng, most), IMAGE_MARKER)
        entries.append({"id": f"scene-{name}", "image": f"{name}.jpg", "conversations": conversation})
    for i, scene in enumerate(draw_scenes(text_only, (seed, 4))):
        conversation = turns(questions.conversation(scene, rng, most), questions.described(scene))
        entries.append({"id": f"text-{i:06d}", "conversations": conversation})
    write_text(folder / "llava_v1_5_mix665k.json", json.dumps(entries))


def write_probes(folder: Path, sizes: Mapping[str, int], seed: int) -> None:
    """Pictures whose every token is labelled, for linear probes: `sizes` scenes of each split.

    `labels.npz` of a split holds `render.token_labels` as uint8 (scenes, 64) each, `names` of the images (scenes,) and
    `categories`, the names that the labels of `category` count from 1.
    """
    for stream, (split, n) in enumerate(sizes.items()):
        names, labels = [], []
        for name, scene, masks in write_pictures(folder / split / "images", n, (seed, 8, stream), split, digits=5):
            names.append(f"{name}.jpg")
            labels.append(token_labels(scene, masks))
        arrays = {label: np.stack([row[label] for row in labels]) for label in LABELS}
        arrays = {"names": names, "categories": [c.name for c in CATEGORIES], **arrays}
        np.savez_compressed(folder / split / "labels.npz", **arrays)


def write_world(folder: str | Path, seed: int, sizes: Mapping) -> None:
    """Write everything under `folder`, in the layout above; `sizes`: the numbers of a profile's section `world`."""
    folder = Path(folder)
    for part in ("benchmarks", "llava_pretrain", "llava_instruct", "probes"):
        shutil.rmtree(folder / part, ignore_errors=True)  # what an interrupted call has left
    write_benchmarks(folder / "benchmarks", sizes["benchmarks"], seed)
    write_captions(folder / "llava_pretrain", sizes["captions"], seed)
    numbers = (sizes[name] for name in ("conversations", "text_only", "turns"))
    write_conversations(folder / "llava_instruct", *numbers, seed)
    write_probes(folder / "probes", sizes["probes"], seed)
