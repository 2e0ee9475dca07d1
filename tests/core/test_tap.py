"""States read and edited through hooks: against transformers' own, under checkpointing, in generation."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from trainings import MIXED, inputs, perturb

from viral_core.llava import add_lora, assemble
from viral_core.tap import VisualTap, base_llava


@pytest.fixture(scope="module")
def batch(batch_of):
    return inputs(batch_of(MIXED))


def build(tiny, vision="clip", language="llama", lora=False):
    torch.manual_seed(1)
    llava, _ = assemble(tiny / vision, tiny / language)
    return perturb(add_lora(llava, r=4, alpha=8), "lora_B") if lora else llava


def visual(model, ids):
    return (ids == base_llava(model).config.image_token_id).flatten()


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("vision", "language"), [("clip", "llama"), ("siglip", "llama"), ("clip", "qwen")])
def test_states_equal_output_hidden_states(tiny, batch, vision, language, lora):
    model = build(tiny, vision, language, lora)
    with VisualTap(model, range(5)) as tap, torch.no_grad():
        hidden = model(**batch, output_hidden_states=True).hidden_states
        mask = visual(model, batch["input_ids"])
        assert mask.sum() == 16
        for layer in range(4):
            assert torch.equal(tap.states[layer], hidden[layer].flatten(0, 1)[mask])
        assert torch.equal(tap.post_norm(4), hidden[4].flatten(0, 1)[mask])
        assert not torch.allclose(tap.states[4], tap.post_norm(4))


def test_layer_0_and_features_are_the_projector(tiny, batch):
    model = build(tiny)
    tap = VisualTap(model)
    tower = model.model.vision_tower(batch["pixel_values"], output_hidden_states=True)
    model(**batch)
    assert torch.equal(tap.features, tower.hidden_states[-2][:, 1:])
    projected = model.model.multi_modal_projector(tap.features.clone())
    torch.testing.assert_close(tap.states[0], projected.flatten(0, 1))


def gradients(model, batch, loss):
    model.zero_grad()
    tap = VisualTap(model, [0, 2, 4])
    out = model(**batch, use_cache=False)
    before = {layer: state.detach().clone() for layer, state in tap.states.items()}
    loss(tap, out).backward()
    assert all(torch.equal(before[layer], tap.states[layer]) for layer in before)
    tap.remove()
    return before, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_changes_nothing(tiny, batch):
    model = build(tiny, lora=True).train()
    decoder, passes = base_llava(model).model.language_model, []
    decoder.layers[2].mlp.register_forward_pre_hook(lambda *_: passes.append(1))

    def loss(tap, out):
        return tap.states[2].square().mean() + tap.states[4].mean() + out.logits.square().mean()

    plain = gradients(model, batch, loss)
    decoder.gradient_checkpointing_enable({"use_reentrant": False})
    checkpointed = gradients(model, batch, loss)
    assert len(passes) == 1 + 2  # once more for the gradients
    for a, b in zip(plain, checkpointed, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key])


def test_a_block_that_runs_again_in_backward_keeps_the_states(tiny, batch):
    """As under versions that checkpoint a block's whole call, hooks included."""
    model = build(tiny, lora=True).train()

    def loss(tap, out):
        return tap.states[2].square().mean() + out.logits.square().mean()

    def edited():
        tap = VisualTap(model, [2])
        tap.edit(2, lambda tap: tap.states[0])
        found = gradients(model, batch, loss)
        tap.remove()
        return found

    states, plain = edited()
    for block in base_llava(model).model.language_model.layers:
        call = type(block).__call__
        block.__class__ = type(
            "Checkpointed",
            (type(block),),
            {
                "__call__": lambda self, *args, _call=call, **kwargs: checkpoint(
                    _call, self, *args, use_reentrant=False, **kwargs
                )
            },
        )
    again, checkpointed = edited()
    assert all(torch.equal(states[layer], again[layer]) for layer in states)
    for key in plain:
        torch.testing.assert_close(plain[key], checkpointed[key])


def test_gradients_reach_the_blocks_before_the_tap_only(tiny, batch):
    model = build(tiny, lora=True)
    with VisualTap(model, [2]) as tap:
        model(**batch)
        tap.states[2].square().sum().backward()
    reached = {
        int(name.split(".layers.")[1].split(".")[0])
        for name, p in model.named_parameters()
        if "lora_A" in name and p.grad is not None and p.grad.any()
    }
    assert reached == {0, 1}


@pytest.mark.parametrize("layer", [0, 2])
def test_an_edit_changes_visual_positions_only(tiny, batch, layer):
    model = build(tiny)
    with torch.no_grad():
        clean = model(**batch, output_hidden_states=True).hidden_states
        with VisualTap(model, [layer]) as tap:
            change = torch.randn(16, 32)
            tap.edit(layer, lambda tap: change)
            seen = []
            block = model.model.language_model.layers[layer]
            handle = block.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
            model(**batch)
            handle.remove()
        expected = clean[layer].flatten(0, 1).clone()
        expected[visual(model, batch["input_ids"])] += change
        torch.testing.assert_close(seen[0].flatten(0, 1), expected)
        torch.testing.assert_close(tap.states[layer], expected[visual(model, batch["input_ids"])])
        torch.testing.assert_close(model(**batch, output_hidden_states=True).hidden_states[-1], clean[-1])


def test_an_edit_is_active_in_generation_and_only_in_its_first_pass(tiny, batch):
    model = build(tiny)
    one = {"input_ids": batch["input_ids"][:1], "pixel_values": batch["pixel_values"][:2]}
    calls = []
    with VisualTap(model) as tap:

        def fn(tap):
            calls.append(len(tap.token_index))
            return 5 * tap.states[0]

        tap.edit(2, fn)
        new = model.generate(**one, max_new_tokens=5, do_sample=False, eos_token_id=None)[
            0, one["input_ids"].shape[1] :
        ]
        assert calls == [8]
        ids = one["input_ids"]
        for token in new:  # the same without a cache
            assert model(input_ids=ids, pixel_values=one["pixel_values"]).logits[0, -1].argmax() == token
            ids = torch.cat([ids, token.view(1, 1)], dim=1)


def test_text_only_batch_has_no_states(tiny, batch):
    model = build(tiny)
    with VisualTap(model, [2]) as tap:
        tap.edit(2, lambda tap: tap.states[0])
        model(**batch)
        model(input_ids=batch["input_ids"][1:2])
        assert tap.states[2].shape == (0, 32)
        assert tap.features is None


def test_remove_and_bad_input(tiny, batch):
    model = build(tiny)
    tap = VisualTap(model, [1])
    tap.remove()
    model(**batch)
    assert tap.states == {}
    for layers in ([5], [-1]):
        with pytest.raises(ValueError, match="layers 0"):
            VisualTap(model, layers)
    with VisualTap(model) as tap, pytest.raises(ValueError, match="input_ids"):
        model(inputs_embeds=torch.zeros(1, 2, 32))
