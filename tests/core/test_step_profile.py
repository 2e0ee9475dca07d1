import time

from test_trainer import RECIPE, TEMPLATE, build, features

from viral_core.conversations import load_conversations
from viral_core.data import Collator, ConversationDataset
from viral_core.step_profile import PARTS, profile_step
from viral_core.tap import base_llava


def test_the_parts_add_up_and_cached_features_spare_the_vision_tower(tiny, conversations):
    model, processor = build(tiny)
    samples = [sample for sample in load_conversations(*conversations) if sample.images]
    data = ConversationDataset(samples, processor, TEMPLATE, 512)
    tower = base_llava(model.llava).model.vision_tower
    slow = tower.register_forward_pre_hook(lambda *_: time.sleep(0.05), prepend=False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batches = [(0, 1), (2, 3), (4, 5)]
    start = time.perf_counter()
    pixels = profile_step(model, data, Collator(processor, features), RECIPE, batches)
    spent = time.perf_counter() - start
    assert tuple(pixels) == PARTS
    assert all(seconds > 0 for seconds in pixels.values())
    assert pixels["backward"] < sum(pixels.values()) < spent
    assert all((p == before[name]).all() for name, p in model.named_parameters())

    def encoder(names):
        return features(names).repeat(1, 1, 4)

    cached = profile_step(model, data, Collator(processor, features, encoder=encoder), RECIPE, batches)
    assert cached["vision"] == 0
    slow.remove()
