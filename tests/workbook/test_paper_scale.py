"""The paper's models at their real sizes: parameters and grids on the meta device, and thin copies that really run.

A full-size model on the meta device has shapes and no numbers.  A thin copy keeps the number of blocks, the input size,
the patch and the ratio of heads to key-value heads, and divides the widths: taps, token counts and grids are the real
ones.
"""

import pytest
import torch
import yaml
from conftest import tiny_tokenizer
from PIL import Image
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionModel,
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Model,
    DPTImageProcessorPil,
    RadioModel,
    SamImageProcessorPil,
    SamVisionModel,
    SiglipImageProcessorPil,
    SiglipVisionModel,
)

from viral_core.aligned import AlignedModel
from viral_core.checkpoints import VISION
from viral_core.conversations import Sample
from viral_core.data import Collator, ConversationDataset
from viral_core.llava import add_lora, assemble
from viral_core.specs import Align
from viral_core.tap import base_llava
from viral_core.teachers import KINDS, load_teacher
from viral_core.templates import TEMPLATES
from viral_core.tiles import view_of
from workbook import config as profiles
from workbook.paths import PROFILES

ARCHITECTURES = yaml.safe_load((PROFILES / "reference" / "architectures.yaml").read_text())
CLIP, SIGLIP2 = "openai/clip-vit-large-patch14-336", "google/siglip2-so400m-patch14-384"
LANGUAGES = {  # template, number of blocks, the paper's layer 16 of 32 at the same depth
    "lmsys/vicuna-7b-v1.5": ("vicuna_v1", 32, 16),
    "lmsys/vicuna-13b-v1.5": ("vicuna_v1", 40, 20),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen", 28, 14),
}
TEACHERS = {
    "dinov2": "facebook/dinov2-base",
    "clip": CLIP,
    "sam": "facebook/sam-vit-base",
    "depth_anything": "depth-anything/Depth-Anything-V2-Base-hf",
    "radio": "nvidia/RADIO-B",
}
CLASSES = {
    "llama": AutoModelForCausalLM.from_config,
    "qwen2": AutoModelForCausalLM.from_config,
    "clip_vision_model": CLIPVisionModel,
    "siglip_vision_model": SiglipVisionModel,
    "dinov2": Dinov2Model,
    "sam_vision_model": SamVisionModel,
    "radio": RadioModel,
}
THIN, HEADS = 32, 4  # widths are divided by the one, numbers of heads by the other


def build(name: str, thin: bool = False):
    """The model of an architecture, or its thin copy, on the current default device."""
    facts = dict(ARCHITECTURES[name]["config"])
    kind = facts.pop("model_type")
    if thin:
        for key in facts.keys() & {"intermediate_size", "mlp_dim", "output_channels", "vocab_size"}:
            facts[key] = -(-facts[key] // THIN)
        for key in facts.keys() & {"num_attention_heads", "num_key_value_heads"}:
            facts[key] //= HEADS
        step = 4 * facts["num_attention_heads"]  # sine and rotary positions ask for a multiple
        facts["hidden_size"] = -(-facts["hidden_size"] // THIN // step) * step
        if kind == "sam_vision_model":  # 4096 positions in each global block: one of them is enough
            facts |= {"num_hidden_layers": 3, "global_attn_indexes": [2]}
    return CLASSES[kind](CONFIG_MAPPING[kind](**facts))


@pytest.fixture(scope="module")
def thin(tmp_path_factory):
    """Saves the thin copy of an architecture once, with its tokenizer or image processor, and names its folder."""
    folder = tmp_path_factory.mktemp("thin")
    imagenet = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225], resample=3)
    processors = {
        CLIP: lambda: CLIPImageProcessorPil(size={"shortest_edge": 336}, crop_size=336),
        SIGLIP2: lambda: SiglipImageProcessorPil(size={"height": 384, "width": 384}),
        TEACHERS["dinov2"]: lambda: BitImageProcessorPil(size={"shortest_edge": 256}, **imagenet),
        TEACHERS["sam"]: SamImageProcessorPil,
        TEACHERS["depth_anything"]: lambda: DPTImageProcessorPil(size=518, **imagenet),
        TEACHERS["radio"]: lambda: CLIPImageProcessorPil(do_normalize=False, resample=3),
    }

    def save(name: str):
        path = folder / name.replace("/", "--")
        if path.exists():
            return path
        torch.manual_seed(0)
        model = build(name, thin=True)
        if name == TEACHERS["depth_anything"]:
            neck = dict(neck_hidden_sizes=[8] * 4, reassemble_factors=[1, 1, 1, 0.5], fusion_hidden_size=8)
            sizes = dict(head_hidden_size=4, reassemble_hidden_size=model.config.hidden_size)
            config = DepthAnythingConfig(backbone_config=model.config, **neck, **sizes)
            model = DepthAnythingForDepthEstimation(config)
        if name in LANGUAGES:
            tokenizer = tiny_tokenizer("<|im_end|>" if name.startswith("Qwen") else "</s>")
            tokenizer.save_pretrained(path)
        else:
            processors[name]().save_pretrained(path)
        model.save_pretrained(path)
        return path

    return save


@pytest.mark.parametrize("name", [name for name, facts in ARCHITECTURES.items() if "parameters" in facts])
def test_real_sizes(name):
    with torch.device("meta"):
        model = build(name)
    assert sum(p.numel() for p in model.parameters()) == ARCHITECTURES[name]["parameters"]


@pytest.mark.parametrize("name", [CLIP, SIGLIP2])
def test_encoder_grids(name):
    """576 = 24 x 24 visual tokens for CLIP without its class token, 729 = 27 x 27 for SigLIP2, which has none."""
    with torch.device("meta"):
        model = build(name)
        pixels = torch.empty(1, 3, model.config.image_size, model.config.image_size)
        layers = model(pixels, output_hidden_states=True).hidden_states
    drop = VISION[model.config.model_type][1] == "default"
    assert layers[-2].shape == (1, ARCHITECTURES[name]["grid"] ** 2 + drop, model.config.hidden_size)


@pytest.mark.parametrize("kind", TEACHERS)
def test_teacher_grids_at_the_real_size(kind, thin):
    """The loader's own reading of features, applied to the full-size model: 24 x 24 features of the paper's sizes."""
    name = TEACHERS[kind]
    _, patch, _, extract = KINDS[kind](str(thin(name)), None)
    with torch.device("meta"):
        if kind == "depth_anything":
            facts = {k: v for k, v in ARCHITECTURES[name]["config"].items() if k != "model_type"}
            config = DepthAnythingConfig(backbone_config=CONFIG_MAPPING["dinov2"](**facts))
            model = DepthAnythingForDepthEstimation(config).backbone
        else:
            model = build(name)
        features = extract(model.eval(), torch.empty(1, 3, 24 * patch, 24 * patch))
    assert features.shape == (1, ARCHITECTURES[name]["grid"] ** 2, ARCHITECTURES[name]["dim"])


@pytest.mark.parametrize("kind", TEACHERS)
def test_teachers_are_brought_to_the_grid_of_siglip2(kind, thin):
    """27 x 27 for a student with 729 tokens; CLIP's own input is fixed at 24 x 24 and is resampled."""
    teacher = load_teacher(kind, thin(TEACHERS[kind]), grid=27)
    patch = {"sam": 16, "radio": 16}.get(kind, 14)
    assert teacher.size == (336 if kind == "clip" else 27 * patch)
    features = teacher([Image.effect_noise((60, 40), 50)])
    assert features.shape == (1, 729, teacher.dim)
    assert features.isfinite().all()


@pytest.mark.parametrize(
    ("language", "vision"), [*((name, CLIP) for name in LANGUAGES), ("lmsys/vicuna-7b-v1.5", SIGLIP2)]
)
def test_a_thin_llava_of_every_shape(language, vision, thin, tmp_path):
    """Assembled by the real code: N visual tokens, tapped in the middle, equal to transformers' own hidden states."""
    template, blocks, middle = LANGUAGES[language]
    layers = Align(teacher="dinov2", depth=0.5).blocks(blocks)
    assert layers == (middle,)
    llava, processor = assemble(thin(vision), thin(language))
    n = ARCHITECTURES[vision]["grid"] ** 2
    assert view_of(processor).tokens() == n
    assert len(llava.model.language_model.layers) == blocks

    Image.effect_noise((50, 70), 60).convert("RGB").save(tmp_path / "a.png")
    turns = ({"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A dog."})
    sample = Sample("a", turns, ("a.png",), tmp_path)
    data = ConversationDataset([sample], processor, TEMPLATES[template], 2048)
    batch = Collator(processor)([data[0]])
    teacher = load_teacher("dinov2", thin(TEACHERS["dinov2"]), grid=ARCHITECTURES[vision]["grid"])
    batch["teacher_features"] = teacher(sample.open_images())

    aligned = AlignedModel(add_lora(llava, r=4, alpha=8), Align(layers=layers, dim=teacher.dim, hidden=16)).train()
    losses = aligned(**batch)
    state = aligned.tap.states[middle]
    hidden = base_llava(aligned.llava)(
        **{key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values")}, output_hidden_states=True
    ).hidden_states
    visual = batch["input_ids"][0] == processor.image_token_id
    assert state.shape == (n, llava.config.text_config.hidden_size)
    torch.testing.assert_close(state, hidden[middle][0, visual])
    losses["loss"].backward()
    assert losses["vra_loss"].isfinite()
    trained = {name: p.grad for name, p in aligned.named_parameters() if p.requires_grad}
    assert all(grad is not None for grad in trained.values())
    above = [g for name, g in trained.items() if f".layers.{blocks - 1}.self_attn.q_proj.lora_B" in name]
    assert above
    assert above[0].abs().sum() > 0


def test_every_model_of_the_paper_profile_is_listed():
    """Hub ids of the profile and architectures agree, so that estimates exist for each and none is left over."""
    paper = profiles.load("paper")
    groups = (paper.languages, paper.visions, paper.teachers)
    assert {model.path for group in groups for model in group.values()} == set(ARCHITECTURES)
