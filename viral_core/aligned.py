"""The training objective: L = L_LM + lambda L_VRA (Eq. 5), and what takes its place in the pilot study and in ROSS."""

import weakref
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import LlavaConfig

from viral_core import losses
from viral_core.head import AlignmentHead
from viral_core.llava import connector
from viral_core.specs import Align, Reconstruct, Residual
from viral_core.tap import VisualTap, base_llava
from viral_core.tiles import NEWLINE, batch_patch_index, blank_image, is_tiled


class AlignedModel(nn.Module):
    """A LLaVA with visual representation alignment: L = L_LM + weight * L_VRA, or ROSS's reconstruction.

    `llava` is what `assemble` or `add_lora` returns. Without either it is the baseline, and the same code runs.
    `state_dict` holds only what trains. The vision tower is always in eval mode. Heads, adapters and denoiser start at
    random: set the seed before. `tap` holds the visual positions of the latest forward pass.

    ValueError for a layer that the language model does not have, a teacher's feature size that is not stated, and
    residuals or reconstruction in a LLaVA-NeXT.
    """

    accepts_loss_kwargs = True  # transformers' Trainer counts tokens over the global batch

    def __init__(
        self,
        llava: nn.Module,
        align: Align | None = None,
        residuals: Sequence[Residual] = (),
        reconstruct: Reconstruct | None = None,
    ):
        super().__init__()
        self.llava = llava
        blocks = self.config.text_config.num_hidden_layers
        self.align = align and replace(align, layers=align.blocks(blocks))
        self.residuals = tuple(replace(residual, layer=residual.block(blocks)) for residual in residuals)
        self.reconstruct = reconstruct and replace(reconstruct, layer=reconstruct.block(blocks))
        if (self.residuals or reconstruct) and is_tiled(self.config):
            raise ValueError("re-injection and reconstruction take the one map of tokens that LLaVA-1.5 has")
        self.heads, self.adapters, self.reconstruction = nn.ModuleDict(), nn.ModuleDict(), None
        tapped = []
        if self.align is not None:
            self._add_heads()
            tapped += self.align.layers
        if self.reconstruct is not None:
            from viral_core.ross import Reconstruction  # loads diffusers

            self.reconstruction = Reconstruction(self.config.text_config.hidden_size, self.reconstruct)
            tapped.append(self.reconstruct.layer)

        # Before the tap, whose hook reads what this one writes. It must not keep this model alive, nor outlive it.
        embed = weakref.WeakMethod(self._embed)
        decoder = base_llava(llava).model.language_model
        self._hook = decoder.register_forward_pre_hook(
            lambda _module, args, kwargs: (args, embed()(kwargs)), with_kwargs=True
        )
        weakref.finalize(self, self._hook.remove)
        self.tap = VisualTap(llava, tapped)
        self._encoder_features: Tensor | None = None  # of the forward pass under way
        for residual in self.residuals:
            self._add_residual(residual)
        self.register_state_dict_post_hook(_drop_frozen)
        self.register_load_state_dict_post_hook(_expect_no_frozen)

    @property
    def config(self) -> LlavaConfig:
        return base_llava(self.llava).config

    def _add_heads(self) -> None:
        align, width = self.align, self.config.text_config.hidden_size
        encoder = self.config.vision_config.hidden_size
        dim = {"teacher": align.dim, "encoder": encoder, "projector": width}[align.target]
        if dim is None:
            raise ValueError("the head's output is as wide as the teacher's features: give Align their `dim`")
        for key in ["shared"] if align.shared_head else map(str, align.layers):
            self.heads[key] = AlignmentHead(width, dim, align.hidden, align.init_std)
        self.heads.requires_grad_(align.train_head)

    def _add_residual(self, residual: Residual) -> None:
        if residual.source == "projector":
            self.tap.edit(residual.layer, lambda tap: tap.states[0])  # Eq. 3
            return
        if str(residual.layer) in self.adapters:
            raise ValueError(f"two adapters re-inject after block {residual.layer}: give them different blocks")
        adapter = nn.Linear(self.config.vision_config.hidden_size, self.config.text_config.hidden_size)
        nn.init.normal_(adapter.weight, std=0.02)
        nn.init.zeros_(adapter.bias)
        self.adapters[str(residual.layer)] = adapter
        # Eq. 7
        self.tap.edit(residual.layer, lambda tap: adapter(tap.features.flatten(0, 1).to(adapter.weight.dtype)))

    def _embed(self, kwargs: dict) -> dict:
        """What LLaVA itself does not put into the language model's input: cached encoder features, projected.

        In a training batch without images the vision path runs on a blank one, and zero times its output is added:
        every rank then runs the same modules and every trained parameter has a gradient; else DDP and ZeRO hang.
        """
        core, embeddings = base_llava(self.llava).model, kwargs["inputs_embeds"]
        if self._encoder_features is not None:
            features = self._encoder_features.to(embeddings.device, core.multi_modal_projector.linear_1.weight.dtype)
            projected = core.multi_modal_projector(features).to(embeddings.dtype)
            rows = embeddings.flatten(0, 1).index_copy(0, self.tap.token_index, projected.flatten(0, 1))
            return {**kwargs, "inputs_embeds": rows.view_as(embeddings)}
        if not self.training or self.tap.features is not None:
            return kwargs
        blank = blank_image(self.config, embeddings)
        projected = torch.cat(core.get_image_features(**blank, return_dict=True).pooler_output)
        self.tap.features = self.tap.features[:0]
        return {**kwargs, "inputs_embeds": embeddings + 0 * projected.sum().to(embeddings.dtype)}

    def forward(
        self,
        image_tokens: list[int] = (),
        encoder_features: Tensor | None = None,
        teacher_features: Tensor | None = None,
        latents: Tensor | None = None,
        totals: Tensor | None = None,
        **inputs: Tensor,
    ) -> dict[str, Tensor]:
        """Losses of a batch of B conversations with n images (n may be 0).

        Args:
            image_tokens: the visual tokens of each of the n images; they sum to T.
            encoder_features: (n, N, Dz), what the frozen vision tower made of the images, in place of their pixels.
            teacher_features: (n, N, d). LLaVA-NeXT: (tiles of all images, N, d).
            latents: (n, N, c) VAE latents of the images, for the reconstruction.
            totals: (2,) supervised tokens and images of the global batch of which this one is a part, over which losses
                are then means; else over this batch.
            inputs: of the LLaVA: input_ids, attention_mask, labels (B, S), padded on the right, and pixel_values
                (n, 3, H, W) in reading order. LLaVA-NeXT: (n, tiles, 3, H, W), filled up with blank tiles, and
                image_sizes (n, 2).

        Returns:
            Scalars `loss`, `lm_loss` (Eq. 2) and, unweighted, `vra_loss` (Eq. 4 / 6) or `ross_loss`. ValueError where
            teacher features or latents are missing, or features do not match the visual tokens.
        """
        if encoder_features is not None and encoder_features.shape[:2].numel() != sum(image_tokens):
            raise ValueError(
                f"encoder features {tuple(encoder_features.shape)} do not match {sum(image_tokens)} visual tokens: "
                "write the encoder's cache again"
            )
        self._encoder_features = encoder_features
        tokens = None if totals is None else totals[0].clamp(min=1)
        try:
            lm_loss = self.llava(**inputs, num_items_in_batch=tokens, use_cache=False).loss
        finally:
            self._encoder_features = None
        share = 1 if totals is None else len(image_tokens) / totals[1].clamp(min=1)
        out = {"loss": lm_loss, "lm_loss": lm_loss}
        if self.align is not None:
            out["vra_loss"] = self._alignment(image_tokens, teacher_features, inputs.get("image_sizes")) * share
            out["loss"] = out["loss"] + self.align.weight * out["vra_loss"]
        if self.reconstruct is not None:
            layer = self.reconstruct.layer
            last = layer == self.config.text_config.num_hidden_layers
            condition = self.tap.post_norm(layer) if last else self.tap.states[layer]
            out["ross_loss"] = self.reconstruction(condition, latents) * share
            out["loss"] = out["loss"] + self.reconstruct.weight * out["ross_loss"]
        return out

    def _alignment(self, image_tokens: list[int], teacher_features: Tensor | None, sizes: Tensor | None) -> Tensor:
        """L_VRA: the mean over the aligned blocks."""
        shown = slice(None)  # visual tokens that show a patch
        image_ids = torch.arange(len(image_tokens)).repeat_interleave(torch.tensor(image_tokens, dtype=torch.long))
        target = self._target(teacher_features)
        if sizes is not None:  # LLaVA-NeXT: newlines show no patch, and unpadding leaves patches out
            patches = torch.cat(batch_patch_index(self.config, sizes))
            shown = (patches != NEWLINE).nonzero().squeeze(1)
            per_token = self.align.target == "projector"
            rows = len(self.tap.states[0]) if per_token else self.tap.features.shape[:2].numel()
            if len(target) != rows:
                raise ValueError(f"alignment target of {len(target)} rows does not match the {rows} of the tiles")
            target, image_ids = target[shown if per_token else patches[shown]], image_ids[shown]
        values = []
        for layer in self.align.layers:
            head = self.heads["shared" if self.align.shared_head else str(layer)]
            pred = head(self.tap.states[layer][shown])
            objective = getattr(losses, self.align.objective)
            values.append(objective(pred, pred.new_zeros(pred.shape) if target is None else target, image_ids))
        return torch.stack(values).mean()

    def _target(self, teacher_features: Tensor | None) -> Tensor | None:
        """What the projected states are compared with, one row a patch; None in a batch without images."""
        if self.align.target == "encoder":  # Eq. 4
            target = self.tap.features
        elif self.align.target == "projector":  # Eq. 8
            target = self.tap.states[0]
        else:  # Eq. 6
            target = teacher_features
            if target is None and self.tap.token_index.numel():
                raise ValueError("the alignment loss needs teacher features of a batch with images: cached or online")
        return None if target is None else target.reshape(-1, target.shape[-1])

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """What trains: "projector", and "rest" (LoRA and all that is new, which shares LoRA's learning rate)."""
        projector = [p for p in connector(self.llava) if p.requires_grad]
        own = set(projector)
        return {"rest": [p for p in self.parameters() if p.requires_grad and p not in own], "projector": projector}

    def gradient_checkpointing_enable(self) -> None:
        """Recompute the language model's blocks in the backward pass (never reentrant: LoRA relies on it)."""
        base_llava(self.llava).model.language_model.gradient_checkpointing_enable({"use_reentrant": False})

    def train(self, mode: bool = True) -> "AlignedModel":
        super().train(mode)
        base_llava(self.llava).model.vision_tower.eval()
        return self

    def remove(self) -> None:
        """Detach from the LLaVA: no taps, no residuals."""
        self.tap.remove()
        self._hook.remove()


def _drop_frozen(module: nn.Module, state: dict, prefix: str, _metadata) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]
    state.update({prefix + name: p.detach() for name, p in module.named_parameters() if p.requires_grad})


def _expect_no_frozen(module: nn.Module, keys) -> None:
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    keys.missing_keys[:] = [key for key in keys.missing_keys if key in trained]
