"""Write the embedded world's training data in the real on-disk formats: LLaVA's captions and instruction mix.

Layout under the folder, as LLaVA's own recipe has it:

    llava_pretrain/blip_laion_cc_sbu_558k.json, llava_pretrain/images/      stage 1: one caption per image
    llava_instruct/llava_v1_5_mix665k.json,     llava_instruct/images/      stage 2: conversations, some in words only
    benchmarks/                                                             see workbook.benchmarks
    pool/                                                                   see workbook.world.render

Training and test scenes are kept apart by their content: `is_test` looks at what is where, so that no test scene can
be drawn in training, whatever the seeds.
"""

import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from viral_core.templates import IMAGE_MARKER
from workbook.world import questions
from workbook.world.scenes import Scene, sample_scene

JPEG_QUALITY = 95


def is_test(scene: Scene) -> bool:
    """Whether a scene belongs to the benchmarks; about one in eight contents does."""
    return zlib.crc32(repr(scene.key()).encode()) % 8 == 0


def scenes(n: int, seed: int | tuple[int, ...], test: bool) -> Iterator[Scene]:
    """`n` training or test scenes drawn from `seed`."""
    rng = np.random.default_rng(seed)
    while n:
        scene = sample_scene(rng)
        if is_test(scene) == test:
            n -= 1
            yield scene


def turns(items: list[questions.QA], image: bool) -> list[dict]:
    """LLaVA's turns; the image's marker stands before the first question."""
    out = []
    for i, qa in enumerate(items):
        marker = f"{IMAGE_MARKER}\n" if image and i == 0 else ""
        out += [{"from": "human", "value": marker + qa.text}, {"from": "gpt", "value": qa.told}]
    return out


def captioning(scene: Scene) -> list[dict]:
    """One turn that asks for the caption."""
    asked = {"from": "human", "value": f"Write a caption for this photo.\n{IMAGE_MARKER}"}
    return [asked, {"from": "gpt", "value": questions.caption(scene)}]


def in_words(scene: Scene, items: list[questions.QA]) -> list[dict]:
    """A conversation without an image: the scene is described in the first question instead."""
    out = turns(items, image=False)
    out[0]["value"] = f"{questions.described(scene)}\n{out[0]['value']}"
    return out


def write_captions(folder: Path, n: int, seed: int) -> None:
    """Stage 1: `n` images with a caption each, in the format of LCS-558K."""
    from workbook.world.render import render

    images = folder / "images"
    images.mkdir(parents=True)
    entries = []
    for i, scene in enumerate(tqdm(scenes(n, (seed, 1), test=False), "captioned scenes", total=n)):
        name = f"{i:06d}.jpg"
        render(scene).save(images / name, quality=JPEG_QUALITY)
        entries.append({"id": f"caption-{i:06d}", "image": name, "conversations": captioning(scene)})
    (folder / "blip_laion_cc_sbu_558k.json").write_text(json.dumps(entries))


def write_conversations(folder: Path, n: int, text_only: int, most: int, seed: int) -> None:
    """Stage 2: `n` images with up to `most` questions each, a third of them captioned first, and `text_only`
    conversations without an image."""
    from workbook.world.render import render

    images = folder / "images"
    images.mkdir(parents=True)
    rng, askers, entries = np.random.default_rng((seed, 3)), list(questions.ASKERS.values()), []
    for i, scene in enumerate(tqdm(scenes(n, (seed, 2), test=False), "instruction scenes", total=n)):
        name = f"{i:06d}.jpg"
        render(scene).save(images / name, quality=JPEG_QUALITY)
        items = questions.conversation(scene, rng, most, askers)
        described = captioning(scene) if i % 3 == 0 else []
        asked = described + turns(items, image=not described)
        entries.append({"id": f"scene-{i:06d}", "image": name, "conversations": asked})
    for i, scene in enumerate(scenes(text_only, (seed, 4), test=False)):
        asked = in_words(scene, questions.conversation(scene, rng, most, askers))
        entries.append({"id": f"text-{i:06d}", "conversations": asked})
    (folder / "llava_v1_5_mix665k.json").write_text(json.dumps(entries))


def write_world(
    folder: str | Path,
    seed: int,
    *,
    captions: int,
    conversations: int,
    turns: int,
    text_only: int,
    benchmarks: dict[str, int],
    pool: int,
) -> None:
    """Write everything under `folder`, in the layout above; numbers are scenes, and rows per benchmark."""  # fmt: skip
    from workbook.world.pool import write_pool
    from workbook.world.write_benchmarks import write_benchmarks

    folder = Path(folder)
    write_benchmarks(folder / "benchmarks", benchmarks, seed)
    write_captions(folder / "llava_pretrain", captions, seed)
    write_conversations(folder / "llava_instruct", conversations, text_only, turns, seed)
    write_pool(folder / "pool", pool, seed, accept=lambda scene: not is_test(scene))
