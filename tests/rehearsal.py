"""A rehearsal of the paper profile: its models and data in small, served as the hub and the other sites serve them.

    python tests/rehearsal.py make fetch repro PROFILE=rehearsal

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
from pathlib import Path

import viral_core  # noqa: F401  (before torch and transformers)

# isort: split
import sentencepiece
import torch
import transformers as hf
import yaml
from diffusers import AutoencoderKL
from local_hub import serve
from PIL import Image
from safetensors.torch import load_file

from viral_core.templates import SYSTEM
from workbook.paths import PROFILES
from workbook.scale import estimates
from workbook.scale.fetch import sha256

HUB = Path("runs/rehearsal/hub")  # what is served; beside it the hub's cache and sources.yaml
SOURCES = PROFILES / "reference" / "sources.yaml"
NARROWER = 32  # widths are divided by this
VOCABULARY = 512  # of which the tokenizers use 400, and special tokens
DEPTHS = {"lmsys/vicuna-7b-v1.5": 8, "lmsys/vicuna-13b-v1.5": 10, "Qwen/Qwen2.5-7B-Instruct": 7}  # others: 3 blocks
TEXT = [f"{SYSTEM} USER: <image>\nWhat is left of the red car? ASSISTANT: A dog; 2 cats, (A) yes or no.\n"] * 20
TEXT_TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3}


def config(name: str, thin: bool = True) -> hf.PreTrainedConfig:
    """The configuration of a model; `thin`: with fewer blocks, narrower layers and fewer words, all else as it is."""
    sizes = dict(estimates.reference("architectures")[name]["config"])
    kind = sizes.pop("model_type")
    if thin:
        sizes["num_hidden_layers"] = DEPTHS.get(name, 3)
        for key in sizes.keys() & {"intermediate_size", "mlp_dim", "output_channels"}:
            sizes[key] = max(8, sizes[key] // NARROWER)
        for key in sizes.keys() & {"num_attention_heads", "num_key_value_heads"}:
            sizes[key] //= 4
        step = 4 * sizes["num_attention_heads"]  # rotary positions ask for multiples
        sizes["hidden_size"] = -(-sizes["hidden_size"] // (NARROWER * step)) * step
        others = {"vocab_size": VOCABULARY, "global_attn_indexes": [1], "out_indices": [1, 2, 3]}
        sizes |= {key: value for key, value in others.items() if key in sizes}
    return hf.CONFIG_MAPPING[kind](**sizes)


def parts(name: str) -> tuple:
    """A model with random weights, and its tokenizer or image processor; a Vicuna's is `sentence_pieces`."""
    thin = config(name)
    if name.startswith("lmsys/"):
        thin.pad_token_id = 0
        return (hf.AutoModelForCausalLM.from_config(thin, dtype=torch.float16),)
    if name.startswith("Qwen/"):
        special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        tokenizer = hf.Qwen2Tokenizer().train_new_from_iterator(TEXT, 400, new_special_tokens=special)
        tokenizer.pad_token, _, tokenizer.eos_token = special
        thin.bos_token_id, thin.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
        return hf.AutoModelForCausalLM.from_config(thin, dtype=torch.bfloat16), tokenizer
    if name.startswith("openai/clip"):  # both encoders
        settings = hf.CLIPConfig(text_config=TEXT_TOWER, vision_config=thin.to_dict(), projection_dim=16)
        return hf.CLIPModel(settings), hf.CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=336)
    if name.startswith("google/siglip2"):
        settings = hf.SiglipConfig(text_config=TEXT_TOWER, vision_config=thin.to_dict())
        return hf.SiglipModel(settings), hf.SiglipImageProcessorPil(size={"height": 384, "width": 384})
    if name.startswith("facebook/dinov2"):
        processor = hf.BitImageProcessorPil(size={"shortest_edge": 256}, crop_size=224, **IMAGENET)
        return hf.Dinov2Model(thin), processor
    if name.startswith("facebook/sam"):  # with its prompt encoder and mask decoder; windows of 14, and a global block
        width = {"hidden_size": thin.output_channels}
        decoder = {**width, "num_attention_heads": 2, "mlp_dim": 16, "iou_head_hidden_dim": 8}
        towers = {"vision_config": thin.to_dict(), "prompt_encoder_config": width, "mask_decoder_config": decoder}
        return hf.SamModel(hf.SamConfig(**towers)), hf.SamImageProcessorPil()
    if name.startswith("depth-anything/"):
        neck = {"neck_hidden_sizes": [8] * 3, "reassemble_factors": [4, 2, 1], "fusion_hidden_size": 8}
        head = {"head_hidden_size": 4, "reassemble_hidden_size": thin.hidden_size}
        settings = hf.DepthAnythingConfig(backbone_config=thin, **neck, **head)
        return hf.DepthAnythingForDepthEstimation(settings), hf.DPTImageProcessorPil(size=518, **IMAGENET)
    thin.hidden_size, thin.num_attention_heads = 384, 6  # RADIO: a width from which the number of heads follows
    return hf.RadioModel(thin), hf.CLIPImageProcessorPil(do_normalize=False, resample=3)


def flux_vae() -> AutoencoderKL:
    """FLUX.1's, narrower."""
    latents = {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    convolutions = {"use_quant_conv": False, "use_post_quant_conv": False}
    return AutoencoderKL(block_out_channels=[8] * 4, norm_num_groups=4, **latents, **blocks, **convolutions)


def write_model(folder: Path, name: str) -> None:
    """A model as a repository of the hub: its files as their publisher keeps them, and some that nobody needs."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    clutter = ["README.md", ".gitattributes", "tf_model.h5"]
    if name.startswith("black-forest-labs/"):
        flux_vae().save_pretrained(folder / "vae")
        clutter += ["model_index.json", "flux1-dev.safetensors"]
    else:
        model, *processor = parts(name)
        model.save_pretrained(folder, max_shard_size="2MB" if name in DEPTHS else "5GB")
        for part in processor:
            part.save_pretrained(folder)
    if name.startswith("lmsys/"):
        sentence_pieces(folder)
    if name.startswith(("lmsys/", "openai/")):
        pickle_weights(folder)
    if name.startswith("nvidia/"):  # whose own holds the arguments of a training
        settings = {"architectures": ["RADIOModel"], "args": {"amp": True}, "model_type": "radio"}
        write_json(folder / "config.json", settings)
    for file in clutter:
        (folder / file).write_text(f"{file} of {name}\n", encoding="utf-8")


def sentence_pieces(folder: Path) -> None:
    """A SentencePiece tokenizer with the settings of Llama's."""
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


def pickle_weights(folder: Path) -> None:
    """Weights as torch files in place of safetensors."""
    for file in folder.glob("*.safetensors"):
        torch.save(load_file(file), folder / f"pytorch_{file.stem}.bin")
        file.unlink()
    for index in folder.glob("*.index.json"):
        text = index.read_text(encoding="utf-8").replace("model-", "pytorch_model-").replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(text, encoding="utf-8")
        index.unlink()


def picture(file: Path, size: tuple[int, int], mode: str = "RGB") -> None:
    """A picture of noise, in the format that the file's name says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise(size, 90).convert(mode).save(file)


def turns(*texts: str) -> list[dict]:
    """LLaVA's turns, a question first."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


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
    modes = {"ocr_vqa/images": "P", "gqa/images": "L", "textvqa/train_images": "CMYK"}
    for i, folder in enumerate(folders * 3):
        name, file = f"{folder}/{i:012d}.jpg", images / folder / f"{i:012d}.jpg"
        if folder == "ocr_vqa/images":  # files there have other suffixes than the json says
            file = file.with_suffix(".gif")
        picture(file, (50 + 11 * i, 120 - 3 * i), modes.get(folder, "RGB"))
        talk = turns("<image>\nWhat is it?", f"A dog, number {i}.", "Where?\nAnswer in one word.", "Left")
        entries.append({"id": f"{i:012d}", "image": name, "conversations": talk})
    entries[1]["conversations"] = turns("What is in the picture?\n<image>", "A red car.")
    entries[2]["conversations"] = turns("<image>\nWho?", *["Anna.", "And then?"] * 14, "Nobody.")
    entries[3]["id"] = 33
    plain = {
        "sharegpt": turns("What is a dog?", "An animal.\n\n- four legs", "And a cat?", "Another one.\u2028"),
        "begins with gpt": turns("", "Yes.", "Hi, what is a dog?", "An animal.")[1:],
        "ends with human": turns("Hi", "Hello.", "Thank you"),
        "over-long": turns("word " * 3000, "Too long."),
        "names a marker": turns("What does <image> mean?", "The place of a picture."),
        "special strings": turns("Write </s> and <|im_end|>.", "</s><|im_end|> done"),
    }
    entries += [{"id": name, "model": "", "conversations": talk} for name, talk in plain.items()]
    write_json(json_file, entries)


def write_data(hub: Path) -> None:
    """The data as their sites have them, archives and data sets, and `sources.yaml` with places for the addresses."""
    from workbook.world.benchmarks import write_benchmarks

    layout = hub / "layout"
    places = {name: layout / name for name in ("caption_images", "conversation_images", "benchmarks")}
    places |= {name: layout / f"{name}.json" for name in ("captions", "conversations")}
    write_captions(places["captions"], places["caption_images"])
    write_conversations(places["conversations"], places["conversation_images"])
    rows = {"cv_bench": 12, "mmvp": 4, "whats_up_one": 4, "whats_up_two": 4, "pope_random": 12, "pope_popular": 12}
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
            inside = (content.parent, content.name) if source.get("strip") else (content, ".")
            served = Path(shutil.make_archive(str(served), "zip", *inside))
        else:
            shutil.copy(content, served)
        source.pop("by_hand", None)
        source |= {"url": f"HUB/files/{served.name}", "sha256": sha256(served)}
    shutil.rmtree(layout)
    (hub / "sources.yaml").write_text(yaml.safe_dump(groups), encoding="utf-8")


def run(command: list[str]) -> int:
    """Run a command in a network of this machine's own: the hub, its cache and the sites of the data."""
    if not (HUB / "sources.yaml").is_file():
        write_data(HUB)
    if not (HUB / "models").is_dir():
        for name in estimates.reference("architectures"):
            write_model(HUB / "models" / name, name)
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
