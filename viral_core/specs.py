"""What a run trains beside the language model's loss, stated once: for `runs.yaml`, for `run.json` and for the model.

Depths are relative, so that one statement fits language models of any number of blocks; a run may name its blocks
instead. What only the data know (a teacher's feature size, the grid of latents) is filled in before the model is built.
"""

from dataclasses import dataclass


def block_at(depth: float, blocks: int) -> int:
    """The block, 1-based, at a relative depth in (0, 1] of a language model of so many blocks; a half is rounded up.

    0.5 of 32 is block 16, of 7 block 4; 1.0 is the last block's output, before the final norm.
    """
    return max(1, int(depth * blocks + 0.5))


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError, with the choices, unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"no {name} {value!r}; there are: {', '.join(choices)}")


def _check_depth(depth: float) -> None:
    if not 0 < depth <= 1:
        raise ValueError(f"depth {depth} is not in (0, 1]: it is relative, 0.5 is the middle block")


def _check_weight(weight: float) -> None:
    if weight <= 0:
        raise ValueError(f"weight {weight} must be above 0")


@dataclass(frozen=True)
class Align:
    """The alignment loss of a run (Eq. 4-6, 8): what is aligned, where, to what, how strongly.

    `target`: "teacher" (Eq. 6), "encoder" (Eq. 4: its own features z) or "projector" (Eq. 8: detached post-projection
    features). `span`: that many blocks on either side of the block at `depth` are aligned too, one loss each, averaged.
    1 is the paper's 15-17 and 2 its 14-18, around block 16 of 32; of 8 blocks they are 3-5 and 2-6 (neighbours stay
    neighbours: at a quarter of the depth there is nothing between two blocks).

    For controls: `teacher_state: as_released` gives the teacher that the released code trains with: every linear layer
    drawn anew, N(0, 0.02), and CLIP's pixel normalisation. `train_head: false` leaves the head at its random start.
    `shuffled` aligns each image to the features of another one of the training set, always the same.
    """

    target: str = "teacher"
    teacher: str | None = None  # its name
    depth: float = 0.5
    span: int = 0
    layers: tuple[int, ...] | None = None  # blocks, 1-based, in place of depth and span
    objective: str = "cosine"
    weight: float = 0.5  # lambda of Eq. 5
    shared_head: bool = False  # one for all blocks; else one each
    train_head: bool = True
    teacher_state: str = "intact"
    shuffled: bool = False
    hidden: int = 2048  # the head's width
    init_std: float = 0.02  # of the head's weights at the start
    dim: int | None = None  # the teacher's feature size d

    def __post_init__(self):
        check_choice("alignment target", self.target, ("teacher", "encoder", "projector"))
        check_choice("alignment objective", self.objective, ("cosine", "relation"))
        check_choice("teacher_state", self.teacher_state, ("intact", "as_released"))
        _check_depth(self.depth)
        _check_weight(self.weight)
        if self.span < 0:
            raise ValueError(f"span {self.span} must not be negative")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
            if not self.layers:
                raise ValueError("alignment needs at least one layer")
        if self.shared_head and not self.span and len(self.layers or ()) < 2:
            raise ValueError("shared_head needs several layers: give a span")
        if self.target == "teacher":
            if self.teacher is None and self.dim is None:
                raise ValueError("alignment to a teacher names its `teacher`, or gives the `dim` of its features")
        else:
            choices = {
                "teacher": self.teacher is not None,
                "shuffled": self.shuffled,
                "teacher_state": self.teacher_state != "intact",
                "dim": self.dim is not None,
            }
            if given := [name for name, is_set in choices.items() if is_set]:
                raise ValueError(f"{', '.join(given)} need(s) target teacher, not {self.target}")
        if self.teacher == "clip" and self.teacher_state == "as_released":
            raise ValueError("the released code leaves the teacher clip intact: choose another teacher")

    def blocks(self, count: int) -> tuple[int, ...]:
        """Aligned blocks, 1-based and ascending, of a language model of `count` blocks.

        Raises:
            ValueError: a block beyond the first or the last one.
        """
        if self.layers is not None:
            outside = [layer for layer in self.layers if not 1 <= layer <= count]
            if outside:
                raise ValueError(f"layers {outside} do not exist: this language model has {count} blocks")
            return self.layers
        centre = block_at(self.depth, count)
        first, last = centre - self.span, centre + self.span
        if first < 1 or last > count:
            raise ValueError(f"span {self.span} around block {centre} leaves the {count} blocks of the language model")
        return tuple(range(first, last + 1))


@dataclass(frozen=True)
class Residual:
    """Re-injection of visual features after a block, at visual positions only, in training and in generation.

    `source`: "projector" adds P_phi(z) (Eq. 3); "encoder" adds P_phi'(z) with a new linear adapter (Eq. 7).
    """

    source: str = "projector"
    depth: float = 0.5
    layer: int | None = None  # the block, 1-based, in place of the depth

    def __post_init__(self):
        check_choice("residual source", self.source, ("projector", "encoder"))
        _check_depth(self.depth)

    def block(self, count: int) -> int:
        """The block, 1-based, of a language model of `count` blocks."""
        return self.layer or block_at(self.depth, count)


@dataclass(frozen=True)
class Reconstruct:
    """ROSS's objective (Table 6): a denoiser recovers the image's latents from a block's visual tokens.

    At depth 1.0, ROSS's own, these are the last hidden states after the final norm; elsewhere a block's output.
    """

    depth: float = 1.0
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
        _check_depth(self.depth)
        _check_weight(self.weight)

    def block(self, count: int) -> int:
        """The block, 1-based, of a language model of `count` blocks."""
        return self.layer or block_at(self.depth, count)
