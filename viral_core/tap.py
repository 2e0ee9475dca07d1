"""Read and write the visual positions of a LLaVA's language model, through forward hooks.

Layer 0 is the language model's input (at visual positions the projector's output), layer l the output of block l,
before any final norm. The last of transformers' `output_hidden_states` is layer L after the final norm: `post_norm`.

Hooks work with LoRA, DDP and ZeRO because they sit on the blocks themselves, and under gradient checkpointing because
transformers runs again what is inside of a block, and its hooks but once.
"""

import weakref
from collections.abc import Callable, Iterable

from torch import Tensor, nn


def base_llava(model: nn.Module) -> nn.Module:
    """The LLaVA inside an optional peft wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class VisualTap:
    """Hidden states at the T visual positions of the latest forward pass; detaches with `remove` or a `with` block.

    Attributes:
        states: {layer: (T, D)} in reading order (row by row of the batch), with their gradient, after any edit.
        features: (n, N, Dz) encoder features of the n images, the projector's input; None without images.
        token_index: (T,) positions in the flattened (B * S) batch.

    A later forward pass replaces them; in generation that is the next token's, without visual positions (T = 0).
    """

    def __init__(self, llava: nn.Module, layers: Iterable[int] = ()):
        """Attach to `llava` (peft-wrapped or not); ValueError for a layer outside 0..L."""
        core = base_llava(llava).model
        # The language model's hooks hold the tap: a reference back would keep a dropped model in memory.
        self._decoder = weakref.proxy(core.language_model)
        self._image_token = core.config.image_token_id
        self.layers = sorted({0, *layers})
        self.states: dict[int, Tensor] = {}
        self.features: Tensor | None = None
        self.token_index: Tensor | None = None
        self._edits: dict[int, list[Callable[[VisualTap], Tensor]]] = {}
        self._check(self.layers)
        self._handles = [
            core.register_forward_pre_hook(self._start, with_kwargs=True),
            core.multi_modal_projector.register_forward_pre_hook(self._keep_features),
            self._decoder.register_forward_pre_hook(self._embeddings, with_kwargs=True),
        ]
        for layer in self.layers[1:]:
            self._hook(layer)

    def edit(self, layer: int, fn: Callable[["VisualTap"], Tensor]) -> None:
        """Add `fn(tap)` (T, D) to the visual positions of `layer`, in training and in a generation's first pass.

        `fn` may use `tap.features` and the states of lower layers; it is not called in a pass without image features.
        Layers above see the edit, as does a read of `layer`.
        """
        self._check([layer])
        if layer not in (*self.layers, *self._edits):
            self._hook(layer)
        self._edits.setdefault(layer, []).append(fn)

    def post_norm(self, layer: int) -> Tensor:
        """State of `layer` after the language model's final norm (T, D), as a logit lens reads it."""
        return self._decoder.norm(self.states[layer])

    def remove(self) -> None:
        """Detach every hook; edits end, states stay."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> "VisualTap":
        return self

    def __exit__(self, *_) -> None:
        self.remove()

    def _check(self, layers: Iterable[int]) -> None:
        top = len(self._decoder.layers)
        if wrong := [layer for layer in layers if not 0 <= layer <= top]:
            raise ValueError(f"layers {wrong} do not exist: this language model has layers 0 (input) to {top}")

    def _hook(self, layer: int) -> None:
        block = self._decoder.layers[layer - 1]
        self._handles.append(block.register_forward_hook(lambda _block, _args, output: self._block(layer, output)))

    def _start(self, _module, args, kwargs) -> None:
        ids = args[0] if args else kwargs.get("input_ids")
        if ids is None:
            raise ValueError("VisualTap finds visual positions by token: pass input_ids, not inputs_embeds")
        self.states = {}
        self.token_index = (ids == self._image_token).flatten().nonzero().squeeze(1)
        if not len(self.token_index):  # else the projector runs in this pass, or has just run on behalf of `generate`
            self.features = None

    def _keep_features(self, _module, args) -> None:
        self.features = args[0]

    def _embeddings(self, _module, args, kwargs):
        return args, {**kwargs, "inputs_embeds": self._visit(0, kwargs["inputs_embeds"])}

    def _block(self, layer: int, output):
        if isinstance(output, tuple):
            return (self._visit(layer, output[0]), *output[1:])
        return self._visit(layer, output)

    def _visit(self, layer: int, hidden: Tensor) -> Tensor:
        """Apply the edits of `layer` to hidden states (B, S, D) and store their visual positions."""
        index = self.token_index.to(hidden.device)
        for fn in self._edits.get(layer, ()) if self.features is not None else ():
            change = fn(self).to(hidden.dtype)
            hidden = hidden.flatten(0, 1).index_add(0, index, change).view_as(hidden)
        state = hidden.flatten(0, 1).index_select(0, index)
        if layer in self.layers:
            self.states[layer] = state
        return hidden
