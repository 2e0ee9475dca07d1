"""A rehearsal of the paper profile: its models and data in small, served as the hub and the other sites serve them.

    python -m workbook.scale.rehearsal make fetch repro PROFILE=rehearsal

writes what the profile `rehearsal` (the paper's, at a size for two cores) would download, serves it from this machine
while the command runs, and points the hub's client there.  Every model is a repository as it is on the hub: random
weights, its real architecture and configuration but for depth, width and vocabulary, the real kinds of weight files and
tokenizers, and files beside them that nobody needs.  The data have the layout of the real files, and their oddities.
"""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from viral_core.templates import SYSTEM
from workbook.paths import PROFILES
from workbook.scale import estimates
from workbook.scale.fetch import sha256
from workbook.scale.local_hub import serve

HUB = Path("runs/rehearsal/hub")  # what is served; beside it the hub's cache and sources.yaml
SOURCES = PROFILES / "reference" / "sources.yaml"
NARROWER = 32  # widths are divided by this
VOCABULARY = 512  # of which the tokenizers use 400, and special tokens
DEPTHS = {"lmsys/vicuna-7b-v1.5": 8, "lmsys/vicuna-13b-v1.5": 10, "Qwen/Qwen2.5-7B-Instruct": 7}  # others: 3 blocks
TEXT = [f"{SYSTEM} USER: <image>\nWhat is left of the red car? ASSISTANT: A dog; 2 cats, (A) yes or no.\n"] * 20
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3}


def config(name: str):
    """The configuration of a model with fewer blocks, narrower layers and fewer words; all else as on the hub."""
    from transformers import CONFIG_MAPPING

    sizes = dict(estimates.reference("architectures")[name]["config"])
    kind = sizes.pop("model_type")
    sizes["num_hidden_layers"] = DEPTHS.get(name, 3)
    if "vocab_size" in sizes:
        sizes["vocab_size"] = VOCABULARY
    for key in sizes.keys() & {"intermediate_size", "mlp_dim", "output_channels"}:
        sizes[key] = max(8, sizes[key] // NARROWER)
    for key in sizes.keys() & {"num_attention_heads", "num_key_value_heads"}:
        sizes[key] //= 4
    heads = sizes["num_attention_heads"]
    sizes["hidden_size"] = -(-sizes["hidden_size"] // (NARROWER * 4 * heads)) * 4 * heads  # rotary: multiples of 4
    if "global_attn_indexes" in sizes:
        sizes["global_attn_indexes"] = [1]
    if "out_indices" in sizes:
        sizes["out_indices"] = [1, 2, 3]
    return CONFIG_MAPPING[kind](**sizes)


def language(folder: Path, name: str) -> None:
    """A language model: Vicuna as torch files and a SentencePiece model, Qwen as safetensors and byte-level BPE."""
    from transformers import AutoModelForCausalLM

    qwen = name.startswith("Qwen")
    settings = config(name)
    special = (byte_level if qwen else sentence_pieces)(folder)
    settings.bos_token_id, settings.eos_token_id, settings.pad_token_id = special
    settings.dtype = torch.bfloat16 if qwen else torch.float16
    model = AutoModelForCausalLM.from_config(settings, dtype=settings.dtype)
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    weights, kind = model.state_dict(), "model-{}.safetensors" if qwen else "pytorch_model-{}.bin"
    save = (lambda part, file: save_file(part, file, {"format": "pt"})) if qwen else torch.save
    shards = {kind.format(f"0000{i + 1}-of-00002"): sorted(weights)[i::2] for i in range(2)}
    for file, names in shards.items():
        save({key: weights[key].contiguous() for key in names}, folder / file)
    index = {"metadata": {}, "weight_map": {key: file for file, names in shards.items() for key in names}}
    suffix = "model.safetensors.index.json" if qwen else "pytorch_model.bin.index.json"
    write_json(folder / suffix, index)


def sentence_pieces(folder: Path) -> tuple[int, int, int | None]:
    """A SentencePiece tokenizer with the settings of Llama's; returns its bos, eos and pad."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": False}
    write_json(folder / "tokenizer_config.json", {**settings, "model_max_length": 4096, **special, "pad_token": None})
    return 1, 2, 0


def byte_level(folder: Path) -> tuple[int, int, int | None]:
    """A byte-level BPE tokenizer with Qwen's special tokens; returns bos, eos and pad of Qwen's configuration."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.train_from_iterator(TEXT, vocab_size=400, show_progress=False)
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer._tokenizer, eos_token=special[2], pad_token=special[0])
    fast.save_pretrained(folder)
    tokenizer.save_model(str(folder))  # vocab.json and merges.txt
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    write_json(folder / "tokenizer_config.json", {**settings, "tokenizer_class": "Qwen2Tokenizer"})
    return tokenizer.token_to_id(special[0]), tokenizer.token_to_id(special[2]), None


def clip(folder: Path, name: str) -> None:
    """CLIP: both encoders in one torch file, as OpenAI published it."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=config(name).to_dict(), projection_dim=16))
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=336).save_pretrained(folder)


def siglip(folder: Path, name: str) -> None:
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    SiglipModel(SiglipConfig(text_config=text, vision_config=config(name).to_dict())).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 384, "width": 384}).save_pretrained(folder)


def dinov2(folder: Path, name: str) -> None:
    from transformers import BitImageProcessorPil, Dinov2Model

    Dinov2Model(config(name)).save_pretrained(folder)
    BitImageProcessorPil(size={"shortest_edge": 256}, crop_size=224, **IMAGENET).save_pretrained(folder)


def sam(folder: Path, name: str) -> None:
    """SAM with its prompt encoder and mask decoder; windows of 14 tokens, and a global block."""
    from transformers import SamConfig, SamImageProcessorPil, SamModel

    vision = config(name)
    width = vision.output_channels
    decoder = {"hidden_size": width, "num_attention_heads": 2, "mlp_dim": 16, "iou_head_hidden_dim": 8}
    prompts = {"hidden_size": width}
    settings = SamConfig(vision_config=vision.to_dict(), prompt_encoder_config=prompts, mask_decoder_config=decoder)
    SamModel(settings).save_pretrained(folder)
    SamImageProcessorPil().save_pretrained(folder)


def depth_anything(folder: Path, name: str) -> None:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, DPTImageProcessorPil

    backbone = config(name)
    neck = {"neck_hidden_sizes": [8] * 3, "reassemble_factors": [4, 2, 1], "fusion_hidden_size": 8}
    head = {"head_hidden_size": 4, "reassemble_hidden_size": backbone.hidden_size}
    settings = DepthAnythingConfig(backbone_config=backbone, **neck, **head)
    DepthAnythingForDepthEstimation(settings).save_pretrained(folder)
    DPTImageProcessorPil(size=518, **IMAGENET).save_pretrained(folder)


def radio(folder: Path, name: str) -> None:
    """RADIO as NVIDIA keeps it: a config.json of training arguments, weights under NVIDIA's names, 6 heads of 64."""
    from transformers import CLIPImageProcessorPil, RadioModel

    settings = config(name)
    settings.hidden_size, settings.num_attention_heads = 384, 6  # a width from which the number of heads follows
    RadioModel(settings).save_pretrained(folder)
    write_json(folder / "config.json", {"architectures": ["RADIOModel"], "args": {"amp": True}, "model_type": "radio"})
    CLIPImageProcessorPil(do_normalize=False, resample=3).save_pretrained(folder)


def vae(folder: Path, _name: str) -> None:
    """FLUX.1's repository: the VAE in its folder, and the large files that are left alone."""
    from diffusers import AutoencoderKL

    latents = {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    convolutions = {"use_quant_conv": False, "use_post_quant_conv": False}
    sizes = {"block_out_channels": [8] * 4, "norm_num_groups": 4}
    AutoencoderKL(**sizes, **blocks, **latents, **convolutions).save_pretrained(folder / "vae")
    write_json(folder / "model_index.json", {"_class_name": "FluxPipeline"})
    (folder / "flux1-dev.safetensors").write_bytes(b"not downloaded")


MODELS: dict[str, Callable[[Path, str], None]] = {
    **dict.fromkeys(DEPTHS, language),
    "openai/clip-vit-large-patch14-336": clip,
    "google/siglip2-so400m-patch14-384": siglip,
    "facebook/dinov2-base": dinov2,
    "facebook/sam-vit-base": sam,
    "depth-anything/Depth-Anything-V2-Base-hf": depth_anything,
    "nvidia/RADIO-B": radio,
    "black-forest-labs/FLUX.1-dev": vae,
}


def write_models(hub: Path) -> None:
    """Every model of the paper profile as a repository below `hub`."""
    for name, write in MODELS.items():
        folder = hub / "models" / name
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        write(folder, name)
        for clutter in ("README.md", ".gitattributes", "tf_model.h5"):
            (folder / clutter).write_text(f"{clutter} of {name}\n", encoding="utf-8")


def picture(file: Path, size: tuple[int, int], mode: str = "RGB") -> None:
    """A picture of noise, in the format that the file's name says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(size).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(file)


def turns(*texts: str, first: str = "human") -> list[dict]:
    """LLaVA's turns, by one and the other."""
    names = ("human", "gpt") if first == "human" else ("gpt", "human")
    return [{"from": names[i % 2], "value": text} for i, text in enumerate(texts)]


def write_captions(json_file: Path, images: Path) -> None:
    """LCS-558K in small."""
    entries = []
    for i in range(8):
        name = f"0045{i}/0045{i}9375.jpg"
        picture(images / name, (40 + 9 * i, 90 - 5 * i))
        ask = "<image>\nDescribe it." if i % 2 else "Give a brief description.\n<image>"
        entries.append({"id": f"0045{i}9375", "image": name, "conversations": turns(ask, f"a cat, number {i}")})
    write_json(json_file, entries)


def write_conversations(json_file: Path, images: Path) -> None:
    """LLaVA's 665K mix in small: each of its folders, and the entries that are unlike the others."""
    entries = []
    folders = ("coco/train2017", "gqa/images", "ocr_vqa/images", "textvqa/train_images", "vg/VG_100K", "vg/VG_100K_2")
    for i, folder in enumerate(folders * 3):
        name, size = f"{folder}/{i:012d}.jpg", (50 + 11 * i, 120 - 3 * i)
        modes = {"ocr_vqa/images": "P", "gqa/images": "L", "textvqa/train_images": "CMYK"}
        # OCR-VQA's files have other suffixes than the json says.
        file = images / (name.replace(".jpg", ".gif") if modes.get(folder) == "P" else name)
        picture(file, size, modes.get(folder, "RGB"))
        talk = turns("<image>\nWhat is it?", f"A dog, number {i}.", "Where?\nAnswer in one word.", "Left")
        entries.append({"id": f"{i:012d}", "image": name, "conversations": talk})
    entries[1]["conversations"] = turns("What is in the picture?\n<image>", "A red car.")
    entries[2]["conversations"] = turns("<image>\nWho?", *["Anna.", "And then?"] * 14, "Nobody.")
    entries[3]["id"] = 33
    plain = {
        "sharegpt": turns("What is a dog?", "An animal.\n\n- four legs", "And a cat?", "Another one.\u2028"),
        "begins with gpt": turns("Yes.", "Hi, what is a dog?", "An animal.", first="gpt"),
        "ends with human": turns("Hi", "Hello.", "Thank you"),
        "over-long": turns("word " * 3000, "Too long."),
        "names a marker": turns("What does <image> mean?", "The place of a picture."),
        "special strings": turns("Write </s> and <|im_end|>.", "</s><|im_end|> done"),
    }
    for name, talk in plain.items():
        entries.append({"id": name, "model": "", "conversations": talk})
    write_json(json_file, entries)


def write_data(hub: Path) -> None:
    """The data as their sites have them, archives and data sets, and `sources.yaml` with places for the addresses."""
    from workbook.world.benchmarks import write_benchmarks

    layout = hub / "layout"
    places = {name: layout / name for name in ("caption_images", "conversation_images", "benchmarks")}
    places |= {name: layout / f"{name}.json" for name in ("captions", "conversations")}
    write_captions(places["captions"], places["caption_images"])
    write_conversations(places["conversations"], places["conversation_images"])
    rows = {"cv_bench": 12, "mmvp": 4, "whats_up_one": 4, "whats_up_two": 4, "pope_random": 6, "pope_popular": 6}
    write_benchmarks(places["benchmarks"], {**rows, "mmstar": 12, "mme": 8}, seed=0)
    groups = yaml.safe_load(SOURCES.read_text(encoding="utf-8"))
    # What says that these benchmarks have fewer rows than the real ones.
    groups["benchmarks"].append({"name": "Rows", "to": "{benchmarks}/manifest.json", "gb": 0})
    for number, source in enumerate(entry for group in groups.values() for entry in group):
        content = Path(source["to"].format(**places))
        if "hub" in source:
            shutil.copytree(content, hub / "datasets" / source["hub"], dirs_exist_ok=True)
            continue
        served = hub / "files" / f"{number}-{content.name}"
        served.parent.mkdir(exist_ok=True)
        if source.get("unzip"):
            served = served.with_name(f"{served.name}.zip")
            _zip(content, served, "/".join(["folder"] * source.get("strip", 0)))
        else:
            shutil.copy(content, served)
        source.pop("by_hand", None)
        source |= {"url": f"HUB/files/{served.name}", "sha256": sha256(served)}
    shutil.rmtree(layout)
    (hub / "sources.yaml").write_text(yaml.safe_dump(groups), encoding="utf-8")


def _zip(folder: Path, archive: Path, prefix: str) -> None:
    with zipfile.ZipFile(archive, "w") as packed:
        for file in sorted(folder.rglob("*")):
            packed.write(file, Path(prefix) / file.relative_to(folder))


def run(command: list[str]) -> int:
    """Run a command in a network of this machine's own: the hub, its cache and the sites of the data."""
    if not (HUB / "sources.yaml").is_file():
        write_data(HUB)
    if not (HUB / "models").is_dir():
        write_models(HUB)
    with serve(HUB) as url:
        sources = (HUB / "sources.yaml").read_text(encoding="utf-8").replace("HUB/", f"{url}/")
        (HUB.parent / "sources.yaml").write_text(sources, encoding="utf-8")
        home = str((HUB.parent / "home").resolve())
        network = {"HF_ENDPOINT": url, "HF_HOME": home, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        return subprocess.run(command, env={**os.environ, **network}, check=False).returncode


def write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
