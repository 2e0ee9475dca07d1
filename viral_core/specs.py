"""What a run trains beside the language model's loss, for `runs.yaml`, for `run.json` and for the model."""

from dataclasses import dataclass

OBJECTIVES = ("cosine", "relation")  # functions of `losses`


def block_at(depth: float, blocks: int) -> int:
    """The block, 1-based, at a relative depth in (0, 1]: 0.5 of 32 is block 16, of 7 block 4 (a half is rounded up)."""
    return max(1, int(depth * blocks + 0.5))


def _one_block(layer: int | None, depth: float, blocks: int) -> int:
    if layer is None:
        return block_at(depth, blocks)
    if not 1 <= layer <= blocks:
        raise ValueError(f"layer {layer} does not exist: this language model has {blocks} blocks")
    return layer


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError, with the choices, unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"no {name} {value!r}; there are: {', '.join(choices)}")


def _check(depth: float, weight: float = 1.0) -> None:
    if not 0 < depth <= 1:
        raise ValueError(f"depth {depth} is not in (0, 1]: it is relative, 0.5 is the middle block")
    if weight <= 0:
        raise ValueError(f"weight {weight} must be above 0")


@dataclass(frozen=True)
class Align:
    """The alignment loss of a run (Eq. 4-6, 8): what is aligned, where, to what, how strongly."""

    target: str = "teacher"  # Eq. 6; "encoder": its own features z (Eq. 4); "projector": post-projection ones (Eq. 8)
    teacher: str | None = None  # its name
    depth: float = 0.5
    span: int = 0  # so many blocks on either side too, averaged: 1 is the paper's 15-17 around block 16, 2 its 14-18
    layers: tuple[int, ...] | None = None  # blocks, 1-based, in place of depth and span
    objective: str = "cosine"
    weight: float = 0.5  # lambda of Eq. 5
    shared_head: bool = False  # one for all blocks; else one each
    train_head: bool = True  # False, for a control: left at its random start
    teacher_state: str = "intact"  # "as_released": every linear layer drawn anew, and CLIP's pixel normalisation
    shuffled: bool = False  # each image is aligned to the features of another one, always the same
    hidden: int = 2048  # the head's width
    init_std: float = 0.02  # of the head's weights at the start
    dim: int | None = None  # the teacher's feature size d

    def __post_init__(self):
        check_choice("alignment target", self.target, ("teacher", "encoder", "projector"))
        check_choice("alignment objective", self.objective, OBJECTIVES)
        check_choice("teacher_state", self.teacher_state, ("intact", "as_released"))
        _check(self.depth, self.weight)
        if self.span < 0:
            raise ValueError(f"span {self.span} must not be negative")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))
            if not self.layers:
                raise ValueError("alignment needs at least one layer")
        if self.shared_head and not self.span and len(self.layers or ()) < 2:
            raise ValueError("shared_head needs several layers: give a span")
        if self.target == "teacher":
            if self.teacher is None and self.dim is None:
                raise ValueError("alignment to a teacher names its `teacher`, or gives the `dim` of its features")
        else:
            unset = {"teacher": None, "shuffled": False, "teacher_state": "intact", "dim": None}
            if given := [name for name, default in unset.items() if getattr(self, name) != default]:
                raise ValueError(f"{', '.join(given)} need(s) target teacher, not {self.target}")
        if self.teacher == "clip" and self.teacher_state == "as_released":
            raise ValueError("the released code leaves the teacher clip intact: choose another teacher")

    def blocks(self, count: int) -> tuple[int, ...]:
        """Aligned blocks, 1-based and ascending, of a language model of `count` blocks; ValueError beyond them."""
        if self.layers is not None:
            if outside := [layer for layer in self.layers if not 1 <= layer <= count]:
                raise ValueError(f"layers {outside} do not exist: this language model has {count} blocks")
            return self.layers
        centre = block_at(self.depth, count)
        first, last = centre - self.span, centre + self.span
        if first < 1 or last > count:
            raise ValueError(f"span {self.span} around block {centre} leaves the {count} blocks of the language model")
        return tuple(range(first, last + 1))


@dataclass(frozen=True)
class Residual:
    """Re-injection of visual features after a block, at visual positions only, in training and in generation."""

    source: str = "projector"  # P_phi(z) (Eq. 3), or "encoder": P_phi'(z) with a new linear adapter (Eq. 7)
    depth: float = 0.5
    layer: int | None = None  # the block, 1-based, in place of the depth

    def __post_init__(self):
        check_choice("residual source", self.source, ("projector", "encoder"))
        _check(self.depth)

    def block(self, count: int) -> int:
        """The block, 1-based, of a language model of `count` blocks; ValueError beyond them."""
        return _one_block(self.layer, self.depth, count)


@dataclass(frozen=True)
class Reconstruct:
    """ROSS's objective (Table 6): a denoiser recovers the image's latents from a block's visual tokens."""

    depth: float = 1.0  # ROSS's own: the last hidden states after the final norm; elsewhere a block's output
    weight: float = 1.0
    vae: str = "vae"  # name of the teacher whose latents these are
    layer: int | None = None  # the block, 1-based, in place of the depth
    blocks: int = 3  # of the denoiser, a DiT
    width: int = 1024
    heads: int = 16
    mlp_ratio: float = 4.0
    repeats: int = 4  # timesteps drawn for each image of a batch
    dim: int | None = None  # channels of a latent token
    grid: int | None = None  # latents lie on grid x grid visual tokens

    def __post_init__(self):
        _check(self.depth, self.weight)

    def block(self, count: int) -> int:
        """The block, 1-based, of a language model of `count` blocks; ValueError beyond them."""
        return _one_block(self.layer, self.depth, count)
