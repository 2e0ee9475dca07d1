"""Scenes of the embedded world, as symbols: what is where, before anything is drawn.

A scene is a photograph with one to six objects on a 4 x 4 grid, one object per cell at the most, so that a
count of objects is a count of cells.  Everything that the benchmarks ask is known exactly: category, count, cell,
facing, size and depth order.  `render` draws a scene; `questions` asks about it.
"""

from dataclasses import dataclass, field

import numpy as np

GRID = 4
MAX_OBJECTS = 6
MAX_COUNT = 3


@dataclass(frozen=True)
class Category:
    """A kind of object.  `native` is the side the unmirrored sprite faces, None where it has no clear front."""

    name: str
    plural: str
    sprite: str  # OpenMoji code point
    kind: str  # animal, vehicle, food or thing
    native: str | None = None


CATEGORIES = (
    Category("dog", "dogs", "1F415", "animal", "left"),
    Category("cat", "cats", "1F408", "animal", "left"),
    Category("horse", "horses", "1F40E", "animal", "left"),
    Category("sheep", "sheep", "1F411", "animal", "left"),
    Category("cow", "cows", "1F404", "animal", "left"),
    Category("elephant", "elephants", "1F418", "animal", "left"),
    Category("bird", "birds", "1F426", "animal", "right"),
    Category("car", "cars", "1F697", "vehicle", "left"),
    Category("bus", "buses", "1F68C", "vehicle", "left"),
    Category("truck", "trucks", "1F69A", "vehicle", "left"),
    Category("bicycle", "bicycles", "1F6B2", "vehicle"),
    Category("train", "trains", "1F682", "vehicle", "left"),
    Category("apple", "apples", "1F34E", "food"),
    Category("banana", "bananas", "1F34C", "food"),
    Category("pizza", "pizzas", "1F355", "food"),
    Category("donut", "donuts", "1F369", "food"),
    Category("carrot", "carrots", "1F955", "food"),
    Category("clock", "clocks", "23F0", "thing"),
    Category("umbrella", "umbrellas", "2602", "thing"),
    Category("book", "books", "1F4D5", "thing"),
    Category("chair", "chairs", "1FA91", "thing"),
    Category("couch", "couches", "1F6CB", "thing"),
    Category("bed", "beds", "1F6CF", "thing"),
    Category("laptop", "laptops", "1F4BB", "thing"),
)
BY_NAME = {c.name: c for c in CATEGORIES}


@dataclass(frozen=True)
class Object:
    """One object: its cell (row 0 at the top), facing (None without a front), size and depth.

    `size` is the sprite's width as a fraction of a cell; `depth` is in (0, 1), 0 nearest.  Nearer objects are larger.
    """

    category: str
    row: int
    col: int
    facing: str | None
    size: float
    depth: float

    @property
    def cell(self) -> int:
        """Index of the cell in reading order, 0 to 15: the index of the visual token that shows the object."""
        return self.row * GRID + self.col


@dataclass(frozen=True)
class Scene:
    """Objects in reading order, and the seed that fixes background, jitter and lighting when it is drawn."""

    objects: tuple[Object, ...]
    seed: int = field(compare=False)

    def of(self, category: str) -> list[Object]:
        return [o for o in self.objects if o.category == category]

    def counts(self) -> dict[str, int]:
        return {c.name: len(self.of(c.name)) for c in CATEGORIES if self.of(c.name)}

    def key(self) -> tuple:
        """What is where and which way it faces: two scenes with one key show the same content."""
        return tuple((o.category, o.cell, o.facing) for o in self.objects)


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene: 1 to 4 categories, 1 to 6 objects, no category more than `MAX_COUNT` times.

    Half of the scenes place two single objects in one row or one column, so that questions about
    relations have clear answers often enough.
    """
    kinds = int(rng.integers(1, 5))
    names = [CATEGORIES[i].name for i in rng.choice(len(CATEGORIES), kinds, replace=False)]
    cells = [int(c) for c in rng.permutation(GRID * GRID)]
    related = kinds > 1 and rng.random() < 0.5
    if related:
        line, (a, b) = int(rng.integers(GRID)), (int(i) for i in rng.choice(GRID, 2, replace=False))
        placed = [line * GRID + a, line * GRID + b] if rng.random() < 0.5 else [a * GRID + line, b * GRID + line]
        cells = placed + [c for c in cells if c not in placed]
    counts = [1 if related and i < 2 else int(rng.integers(1, MAX_COUNT + 1)) for i in range(kinds)]
    while sum(counts) > MAX_OBJECTS:
        counts[int(np.argmax(counts))] -= 1
    chosen = [name for name, n in zip(names, counts, strict=True) for _ in range(n)]
    objects = []
    for name, cell in zip(chosen, cells, strict=False):
        row, col = divmod(cell, GRID)
        depth = float(np.clip(1 - (row + rng.uniform(0.1, 0.9)) / GRID, 0.02, 0.98))
        facing = str(rng.choice(["left", "right"])) if BY_NAME[name].native else None
        size = float(0.98 - 0.28 * depth + rng.uniform(-0.03, 0.02))
        objects.append(Object(name, row, col, facing, size, depth))
    return Scene(tuple(sorted(objects, key=lambda o: o.cell)), int(rng.integers(2**31)))
