"""The training objective: L = L_LM + lambda L_VRA (Eq. 5), and what takes its place in the pilot study and in ROSS."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import LlavaConfig

from viral_core.head import AlignmentHead
from viral_core.llava import connector
from viral_core.losses import OBJECTIVES
from viral_core.specs import Align, Reconstruct, Residual
from viral_core.tap import VisualTap, base_llava
from viral_core.tiles import NEWLINE, batch_patch_index, is_tiled, tile_count


class AlignedModel(nn.Module):
    """A LLaVA with visual representation alignment (Eq. 5): L = L_LM + weight * L_VRA, or ROSS's reconstruction.

    Without either it is the baseline, and the same code runs. `state_dict` holds only what trains, and
    `load_state_dict` takes such a state: training checkpoints stay small under any wrapper. The vision tower is always
    in eval mode. Heads, adapters and denoiser start at random: set the seed before.
    """

    accepts_loss_kwargs = True  # transformers' Trainer counts tokens over the global batch

    def __init__(
        self,
        llava: nn.Module,
        align: Align | None = None,
        residuals: tuple[Residual, ...] = (),
        reconstruct: Reconstruct | None = None,
    ):
        """`llava` is what `assemble` or `add_lora` returns.

        Raises:
            ValueError: a layer that the language model does not have; residuals or reconstruction in a LLaVA-NeXT.
        """
        super().__init__()
        self.llava = llava
        blocks = self.config.text_config.num_hidden_layers
        self.align = align and replace(align, layers=align.blocks(blocks))
        self.residuals = tuple(replace(residual, layer=residual.block(blocks)) for residual in residuals)
        self.reconstruct = reconstruct and replace(reconstruct, layer=reconstruct.block(blocks))
        if (self.residuals or reconstruct) and is_tiled(self.config):
            raise ValueError("re-injection and reconstruction take the one map of tokens that LLaVA-1.5 has")
        core = base_llava(llava).model
        width, encoder_width = self.config.text_config.hidden_size, self.config.vision_config.hidden_size
        self.heads, self.adapters = nn.ModuleDict(), nn.ModuleDict()
        if align is not None:
            dim = {"teacher": align.dim, "encoder": encoder_width, "projector": width}[align.target]
            if dim is None:
                raise ValueError("the head's output is as wide as the teacher's features: give Align their `dim`")
            for key in ["shared"] if align.shared_head else map(str, self.align.layers):
                self.heads[key] = AlignmentHead(width, dim, align.hidden, align.init_std)
            self.heads.requires_grad_(align.train_head)
        self.reconstruction = None
        if reconstruct is not None:
            from viral_core.ross import Reconstruction  # loads diffusers

            self.reconstruction = Reconstruction(
                width,
                reconstruct.dim,
                reconstruct.grid,
                blocks=reconstruct.blocks,
                width=reconstruct.width,
                heads=reconstruct.heads,
                mlp_ratio=reconstruct.mlp_ratio,
                repeats=reconstruct.repeats,
            )
        # Before the tap, whose hook on the language model reads what this one writes.
        self._guard = core.language_model.register_forward_pre_hook(self._keep_in_graph, with_kwargs=True)
        tapped = list(self.align.layers) if align else []
        if reconstruct:
            tapped.append(self.reconstruct.layer)
        self.tap = VisualTap(llava, tapped)
        for residual in self.residuals:
            self._attach(residual, encoder_width, width)
        self.register_state_dict_post_hook(_drop_frozen)
        self.register_load_state_dict_post_hook(_expect_no_frozen)

    @property
    def config(self) -> LlavaConfig:
        return base_llava(self.llava).config

    def _attach(self, residual: Residual, encoder_width: int, width: int) -> None:
        if residual.source == "projector":
            self.tap.edit(residual.layer, lambda tap: tap.states[0])
            return
        adapter = nn.Linear(encoder_width, width)
        nn.init.normal_(adapter.weight, std=0.02)
        nn.init.zeros_(adapter.bias)
        self.adapters[str(residual.layer)] = adapter
        self.tap.edit(residual.layer, lambda tap: adapter(tap.features.flatten(0, 1).to(adapter.weight.dtype)))

    def _keep_in_graph(self, _module, args, kwargs):
        """In a training batch without images, run the vision path on a blank one and add zero times its output.

        Every rank then runs the same modules and every trained parameter has a gradient (zero, not None): without it,
        DDP and ZeRO wait for each other forever.
        """
        if not self.training or self.tap.features is not None:
            return None
        core, side = base_llava(self.llava).model, self.config.vision_config.image_size
        embeddings = kwargs["inputs_embeds"]
        tiles, sizes = 1, {}
        if is_tiled(self.config):
            tiles = tile_count((side, side), self.config.image_grid_pinpoints, side)
            sizes = {"image_sizes": [[side, side]]}
        blank = embeddings.new_zeros(tiles, self.config.vision_config.num_channels, side, side)
        projected = torch.cat(core.get_image_features(pixel_values=blank, **sizes, return_dict=True).pooler_output)
        self.tap.features = self.tap.features[:0]
        return args, {**kwargs, "inputs_embeds": embeddings + 0 * projected.sum().to(embeddings.dtype)}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        labels: Tensor,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        image_tokens: list[int] = (),
        teacher_features: Tensor | None = None,
        latents: Tensor | None = None,
        totals: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Losses of a batch of B conversations with n images (n may be 0).

        Args:
            input_ids, attention_mask, labels: (B, S), padded on the right.
            pixel_values: (n, 3, H, W) in reading order. LLaVA-NeXT: (n, tiles, 3, H, W), filled up with blank tiles.
            image_sizes: LLaVA-NeXT only: (n, 2) heights and widths.
            image_tokens: the visual tokens of each of the n images; they sum to T.
            teacher_features: (n, N, d), or (T, d) where images differ in their number of tokens. LLaVA-NeXT:
                (tiles of all images, N, d), of which unpadding leaves out some, as of the visual tokens.
            latents: (n, N, c) VAE latents of the images, for the reconstruction.
            totals: (2,) supervised tokens and images of the global batch of which this one is a part. Losses are then
                parts of its mean over tokens and images: summed over micro-batches and ranks they give it exactly.
                Without totals the means are over this batch.

        Returns:
            Scalars `loss`, `lm_loss` (Eq. 2) and, unweighted, with alignment `vra_loss` (Eq. 4 / 6), with
            reconstruction `ross_loss`.

        Raises:
            ValueError: teacher features or latents are missing or do not match the visual tokens.
        """
        sizes = {} if image_sizes is None else {"image_sizes": image_sizes}
        lm_loss = self.llava(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            **sizes,
            labels=labels,
            num_items_in_batch=None if totals is None else totals[0],
            use_cache=False,
        ).loss
        share = 1 if totals is None else len(image_tokens) / totals[1].clamp(min=1)
        losses = {"loss": lm_loss, "lm_loss": lm_loss}
        if self.align is not None:
            losses["vra_loss"] = self._alignment(image_tokens, teacher_features, image_sizes) * share
            losses["loss"] = losses["loss"] + self.align.weight * losses["vra_loss"]
        if self.reconstruct is not None:
            losses["ross_loss"] = self.reconstruction(self._reconstructed_from(), latents) * share
            losses["loss"] = losses["loss"] + self.reconstruct.weight * losses["ross_loss"]
        return losses

    def _reconstructed_from(self) -> Tensor:
        layer = self.reconstruct.layer
        last = layer == self.config.text_config.num_hidden_layers
        return self.tap.post_norm(layer) if last else self.tap.states[layer]

    def _alignment(
        self, image_tokens: list[int], teacher_features: Tensor | None, image_sizes: Tensor | None
    ) -> Tensor:
        tokens = self.tap.token_index.numel()
        image_ids = torch.arange(len(image_tokens)).repeat_interleave(torch.tensor(image_tokens, dtype=torch.long))
        target = {
            "teacher": teacher_features,
            "encoder": self.tap.features,
            "projector": self.tap.states[0],
        }[self.align.target]
        if target is None and tokens:
            raise ValueError("the alignment loss needs teacher features for a batch with images: give cache or teacher")
        target = None if target is None else target.reshape(-1, target.shape[-1])
        shown = slice(None)  # the visual positions that show a patch; without tiles, all of them
        if image_sizes is not None:
            patches = torch.cat(batch_patch_index(self.config, image_sizes))
            shown = (patches != NEWLINE).nonzero().squeeze(1)
            chosen = shown if self.align.target == "projector" else patches[shown]
            rows = tokens if chosen is shown else self.tap.features.shape[:2].numel()
            if len(target) != rows:
                raise ValueError(f"alignment target of {len(target)} rows does not match the {rows} of the tiles")
            target = target[chosen]
            image_ids = image_ids[shown]
        losses = []
        for layer in self.align.layers:
            head = self.heads["shared" if self.align.shared_head else str(layer)]
            pred = head(self.tap.states[layer][shown])
            wanted = pred.new_zeros(pred.shape) if target is None else target
            if wanted.shape != pred.shape or len(image_ids) != len(pred):
                raise ValueError(
                    f"alignment target {tuple(wanted.shape)} does not match the {tuple(pred.shape)} projected visual "
                    f"tokens of {len(image_tokens)} images: resample the teacher to the student's grid"
                )
            losses.append(OBJECTIVES[self.align.objective](pred, wanted, image_ids))
        return torch.stack(losses).mean()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """What trains: "projector", and "rest" (LoRA and all that is new, which shares LoRA's learning rate)."""
        projector = [p for p in connector(self.llava) if p.requires_grad]
        own = {id(p) for p in projector}
        return {"rest": [p for p in self.parameters() if p.requires_grad and id(p) not in own], "projector": projector}

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict | None = None) -> None:
        """Recompute the language model's blocks in the backward pass (never reentrant: hooks and LoRA rely on it)."""
        options = {**(gradient_checkpointing_kwargs or {}), "use_reentrant": False}
        base_llava(self.llava).model.language_model.gradient_checkpointing_enable(options)

    def train(self, mode: bool = True) -> "AlignedModel":
        super().train(mode)
        base_llava(self.llava).model.vision_tower.eval()
        return self

    def remove(self) -> None:
        """Detach from the LLaVA: no taps, no residuals."""
        self.tap.remove()
        self._guard.remove()


def _drop_frozen(module: nn.Module, state: dict, prefix: str, _metadata) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]
    state.update({prefix + name: p.detach() for name, p in module.named_parameters() if p.requires_grad})


def _expect_no_frozen(module: nn.Module, keys) -> None:
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    keys.missing_keys[:] = [key for key in keys.missing_keys if key in trained]
