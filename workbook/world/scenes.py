"""Scenes of the embedded world, as symbols: what is where, before anything is drawn.

A scene is a photograph with one to seven objects at free places, in sizes from one visual token to two and a half.
Everything that the benchmarks ask is known exactly: category, number, place, facing, size and depth order.
`render` draws a scene; `questions` asks about it.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

GRID = 8  # visual tokens a side
MAX_OBJECTS = 7
MAX_COUNT = 4


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
    Category("cow", "cows", "1F404", "animal", "left"),
    Category("elephant", "elephants", "1F418", "animal", "left"),
    Category("bird", "birds", "1F426", "animal", "right"),
    Category("car", "cars", "1F697", "vehicle", "left"),
    Category("bus", "buses", "1F68C", "vehicle", "left"),
    Category("apple", "apples", "1F34E", "food"),
    Category("banana", "bananas", "1F34C", "food"),
    Category("pizza", "pizzas", "1F355", "food"),
    Category("donut", "donuts", "1F369", "food"),
    Category("clock", "clocks", "23F0", "thing"),
    Category("umbrella", "umbrellas", "2602", "thing"),
    Category("chair", "chairs", "1FA91", "thing"),
    Category("couch", "couches", "1F6CB", "thing"),
)
BY_NAME = {c.name: c for c in CATEGORIES}


@dataclass(frozen=True)
class Object:
    """One object: its centre and its longest side in fractions of the picture, facing (None without a front), depth.

    x grows to the right, y downwards; `depth` is in (0, 1), 0 nearest.  Nearer objects are larger and lower.
    """

    category: str
    x: float
    y: float
    facing: str | None
    size: float
    depth: float

    @property
    def row(self) -> int:
        return int(self.y * GRID)

    @property
    def col(self) -> int:
        return int(self.x * GRID)

    @property
    def token(self) -> int:
        """Index in reading order, 0 to 63, of the visual token that the centre lies in."""
        return self.row * GRID + self.col


@dataclass(frozen=True)
class Scene:
    """Objects in reading order of their tokens, and the seed that fixes background and lighting when it is drawn."""

    objects: tuple[Object, ...]
    seed: int = field(compare=False)

    def of(self, category: str) -> list[Object]:
        return [o for o in self.objects if o.category == category]

    def exchanged(self, old: Object, *new: Object) -> "Scene":
        """The same scene with other objects, or none, in the place of one."""
        objects = [o for o in self.objects if o is not old] + list(new)
        return replace(self, objects=tuple(sorted(objects, key=lambda o: o.token)))

    def counts(self) -> dict[str, int]:
        return {c.name: len(self.of(c.name)) for c in CATEGORIES if self.of(c.name)}

    def singles(self) -> list[Object]:
        """The objects that are the only one of their category, so that "the dog" is one thing."""
        counts = self.counts()
        return [o for o in self.objects if counts[o.category] == 1]

    def key(self) -> tuple:
        """What is where and which way it faces: scenes with one key show the same content."""
        return tuple((o.category, o.token, o.facing) for o in self.objects)

    @property
    def split(self) -> str:
        """train, val or test by content alone: about one content in eight each is for validation and for testing."""
        return {0: "test", 1: "val"}.get(zlib.crc32(repr(self.key()).encode()) % 8, "train")


def sample_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene: 1 to 4 categories, three in five of them once, none more than `MAX_COUNT` times, 1 to 7 objects.

    Objects touch at the most: they share no token centre and overlap by less than a sixth of their sides.
    """
    kinds = int(rng.choice([1, 2, 3, 4], p=[0.15, 0.25, 0.3, 0.3]))
    names = [CATEGORIES[i].name for i in rng.choice(len(CATEGORIES), kinds, replace=False)]
    counts = [1 if rng.random() < 0.6 else int(rng.integers(2, MAX_COUNT + 1)) for _ in names]
    while sum(counts) > MAX_OBJECTS:
        counts[int(np.argmax(counts))] -= 1
    objects: list[Object] = []
    for name in np.repeat(names, counts):
        facing = str(rng.choice(["left", "right"])) if BY_NAME[name].native else None
        placed = None
        while placed is None or not all(apart(placed, other) for other in objects):
            y = rng.uniform(0.1, 0.9)
            depth = float(np.clip(1 - 0.7 * y - 0.3 * rng.random(), 0.02, 0.98))
            size = float(2.6 - 1.7 * depth + rng.uniform(-0.1, 0.1)) / GRID
            x, y = rng.uniform(size / 2, 1 - size / 2), np.clip(y, size / 2, 1 - size / 2)
            placed = Object(str(name), float(x), float(y), facing, size, depth)
        objects.append(placed)
    return Scene(tuple(sorted(objects, key=lambda o: o.token)), int(rng.integers(2**31)))


def apart(a: Object, b: Object) -> bool:
    """Whether two objects touch at the most."""
    distance = max(abs(a.x - b.x), abs(a.y - b.y))
    return distance > 0.42 * (a.size + b.size) and a.token != b.token


def draw_scenes(n: int, seed: int | tuple[int, ...], split: str = "train") -> Iterator[Scene]:
    """`n` scenes of a split, drawn from `seed`."""
    rng = np.random.default_rng(seed)
    while n:
        scene = sample_scene(rng)
        if scene.split == split:
            n -= 1
            yield scene
