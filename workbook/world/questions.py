"""Questions, answers and captions about a scene of the embedded world, worded as the benchmarks word theirs.

Each asker takes a scene and a generator and returns a `QA`, or None where the scene gives no clear answer.  The
instruction mix, the text lessons of the language models and the benchmark files all ask through these functions, so
that a model is asked in evaluation what it was taught in training.  A relation or a side of the photo is asked where
one direction outweighs the other by `MARGIN` of the picture: everything asked has exactly one right answer.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from workbook.world.scenes import BY_NAME, CATEGORIES, MAX_COUNT, Object, Scene, apart

SINGLE_WORD = "Answer the question using a single word or phrase."
YES_OR_NO = "Please answer yes or no."
LETTER = "Answer with the option's letter from the given choices directly."
THE_ANSWER = ": the answer is"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
ACROSS = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}
MARGIN = 0.12


@dataclass(frozen=True)
class QA:
    """One question.  `text` is the whole user turn, `answer` the scoring key, `reply` what a model is to say.

    `stem` is the bare question and `options` the choices in order, where the benchmark's file keeps them apart.
    The replies of CV-Bench and MMVP name the option before its letter, as an answer that reasons does: easier than the
    letter alone.
    """

    text: str
    answer: str
    stem: str
    options: tuple[str, ...]
    category: str
    reply: str


Asker = Callable[[Scene, np.random.Generator], QA | None]
Rows = list[tuple[Scene, QA]]


def ask(scenes: Iterable[Scene], asker: Asker, n: int, rng: np.random.Generator) -> Rows:
    """The first `n` scenes with a clear answer, and the question."""
    asked = ((scene, asker(scene, rng)) for scene in scenes)
    return list(islice((row for row in asked if row[1]), n))


def choices(gold: str, others: Sequence[str], rng: np.random.Generator) -> tuple[list[str], str]:
    """Options in random order, and the letter of the right one."""
    options = [str(option) for option in rng.permutation([gold, *others])]
    return options, "ABCDEF"[options.index(gold)]


def pick(rng: np.random.Generator, items: Sequence):
    return items[int(rng.integers(len(items)))]


def article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def absent(scene: Scene) -> list[str]:
    return [c.name for c in CATEGORIES if not scene.of(c.name)]


def direction(dx: float, dy: float) -> str | None:
    """The direction of a step: left, right, above or below; None unless one axis outweighs the other by `MARGIN`."""
    if abs(abs(dx) - abs(dy)) < MARGIN:
        return None
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def relations(scene: Scene) -> list[tuple[Object, Object, str]]:
    """Of two objects that are the only ones of their kinds: the direction from the second to the first, where clear."""
    single = scene.singles()
    pairs = [(a, b, direction(a.x - b.x, a.y - b.y)) for a in single for b in single if a is not b]
    return [pair for pair in pairs if pair[2]]


def sides(scene: Scene) -> list[tuple[Object, str]]:
    """Every object that is the only one of its kind and on a clear side of the photo: left, right, top or bottom."""
    words = {"above": "top", "below": "bottom", "left": "left", "right": "right"}
    clear = [(o, direction(o.x - 0.5, o.y - 0.5)) for o in scene.singles()]
    return [(o, words[side]) for o, side in clear if side]


def fronts(scene: Scene) -> list[Object]:
    """Every object that is the only one of its kind and has a front."""
    return [o for o in scene.singles() if o.facing]


def pope(scene: Scene, rng: np.random.Generator) -> QA:
    """POPE: existence, half present and half absent."""
    yes = rng.random() < 0.5
    return pope_about(pick(rng, list(scene.counts()) if yes else absent(scene)), yes)


def pope_about(name: str, yes: bool) -> QA:
    return _yes_or_no("existence", f"Is there {article(name)} in the image?", f"\n{SINGLE_WORD}", yes)


def _yes_or_no(category: str, stem: str, instruction: str, yes: bool) -> QA:
    answer = "Yes" if yes else "No"
    return QA(stem + instruction, answer, stem, ("yes", "no"), category, answer)


def cv_bench_count(scene: Scene, rng: np.random.Generator) -> QA:
    """CV-Bench 2D Count: four to six numbers to choose from."""
    counts = scene.counts()
    name = pick(rng, list(counts))
    others = [str(n) for n in rng.permutation(len(NUMBERS) - 1) if n != counts[name]][: int(rng.integers(3, 6))]
    return _cv_bench("Count", f"How many {BY_NAME[name].plural} are in the image?", str(counts[name]), others, rng)


def cv_bench_relation(scene: Scene, rng: np.random.Generator) -> QA | None:
    """CV-Bench 2D Relation: left or right, above or below."""
    pairs = relations(scene)
    if not pairs:
        return None
    a, b, relation = pick(rng, pairs)
    stem = (
        f"Considering the relative positions of the {a.category} and the {b.category} in the image provided, "
        f"where is the {a.category} located with respect to the {b.category}?"
    )
    return _cv_bench("Relation", stem, relation, [OPPOSITE[relation]], rng)


def _cv_bench(task: str, stem: str, gold: str, others: Sequence[str], rng: np.random.Generator) -> QA:
    options, letter = choices(gold, others, rng)
    listed = "\n".join(f"({x}) {option}" for x, option in zip("ABCDEF", options, strict=False))
    text = f"{stem} Select from the following choices.\n{listed}\n{LETTER}"
    return QA(text, letter, stem, tuple(options), task, f"{gold}{THE_ANSWER} {letter}")


def whats_up_one(scene: Scene, rng: np.random.Generator) -> QA | None:
    """What's Up COCO-one: on which side of the photo is an object."""
    clear = sides(scene)
    if not clear:
        return None
    o, side = pick(rng, clear)
    stem = f"Where is the {o.category} in the photo? Answer with left, right, top or bottom."
    return QA(stem, side.capitalize(), stem, ("left", "right", "top", "bottom"), "one", side)


def whats_up_two(scene: Scene, rng: np.random.Generator) -> QA | None:
    """What's Up COCO-two: where one object is in relation to another."""
    pairs = relations(scene)
    if not pairs:
        return None
    a, b, relation = pick(rng, pairs)
    stem = f"Where is the {a.category} in relation to the {b.category}? Answer with left, right, above or below."
    return QA(stem, relation.capitalize(), stem, ("left", "right", "above", "below"), "two", relation)


# A question, the answer, the other option, and a scene that differs in one object of which that one is true, if any.
Change = tuple[str, str, str, Scene | None]


def _turned(scene: Scene) -> Iterator[Change]:
    for o in fronts(scene):
        other = OPPOSITE[o.facing]
        twin = scene.exchanged(o, replace(o, facing=other))
        yield f"Is the {o.category} facing left or right?", o.facing, other, twin


def _moved(scene: Scene) -> Iterator[Change]:
    for o, side in sides(scene):
        axis = ("left", "right") if side in ("left", "right") else ("top", "bottom")
        moved = replace(o, x=1 - o.x) if "left" in axis else replace(o, y=1 - o.y)
        free = all(apart(moved, other) for other in scene.objects if other is not o)
        stem = f"Is the {o.category} at the {axis[0]} or the {axis[1]} of this image?"
        yield stem, side, ACROSS[side], scene.exchanged(o, moved) if free else None


def _taken(scene: Scene) -> Iterator[Change]:
    for name, n in scene.counts().items():
        twin = scene.exchanged(scene.of(name)[-1]) if n > 1 else None
        yield f"How many {BY_NAME[name].plural} are in the image?", str(n), str(n - 1 if n > 1 else 2), twin


# What the pictures of an MMVP pair differ in: the facing of one object, its side, or the number of a kind.
CHANGES = {"facing": _turned, "side": _moved, "number": _taken}


def mmvp(scene: Scene, rng: np.random.Generator) -> QA | None:
    """MMVP: a visual attribute that a contrastive encoder need not keep.

    The other option beside a number is one more or one less.  A single object is seldom asked about, else it would be
    the better guess.
    """
    kinds = {kind: changes for kind, change in CHANGES.items() if (changes := list(change(scene)))}
    kind = pick(rng, list(kinds))
    stem, right, wrong, _ = pick(rng, kinds[kind])
    if right == "1" and rng.random() < 0.75:
        return None
    if kind == "number" and int(right) < MAX_COUNT and rng.random() < 0.5:
        wrong = str(int(right) + 1)
    return mmvp_about(kind, stem, right, wrong, rng.random() < 0.5)


def mmvp_about(kind: str, stem: str, right: str, wrong: str, right_first: bool) -> QA:
    """A question with two options, in this order or the other."""
    options = (right, wrong) if right_first else (wrong, right)
    letter = "(a)" if right_first else "(b)"
    text = f"{stem}\n(a) {options[0]} (b) {options[1]}\n{LETTER}"
    return QA(text, letter, stem, options, kind, f"{right}{THE_ANSWER} {letter}")


def mme_existence(scene: Scene, rng: np.random.Generator) -> QA:
    yes = rng.random() < 0.5
    name = pick(rng, list(scene.counts()) if yes else absent(scene))
    return _mme("existence", f"Is there {article(name)} in this image?", yes)


def mme_count(scene: Scene, rng: np.random.Generator) -> QA:
    counts = scene.counts()
    name = pick(rng, list(counts))
    yes = rng.random() < 0.5
    near = [n for n in (counts[name] - 1, counts[name] + 1) if 1 <= n <= MAX_COUNT]
    n = counts[name] if yes else pick(rng, near)
    stem = f"Is there {NUMBERS[n]} {name}" if n == 1 else f"Are there {NUMBERS[n]} {BY_NAME[name].plural}"
    return _mme("count", f"{stem} in this image?", yes)


def mme_position(scene: Scene, rng: np.random.Generator) -> QA | None:
    clear = sides(scene)
    if not clear:
        return None
    o, side = pick(rng, clear)
    yes = rng.random() < 0.5
    return _mme("position", f"Is the {o.category} at the {side if yes else ACROSS[side]} of this image?", yes)


def mme_commonsense(scene: Scene, rng: np.random.Generator) -> QA:
    """MME's commonsense reasoning: needs to know what kind of thing a category is."""
    present = {BY_NAME[name].kind for name in scene.counts()} - {"thing"}
    missing = {"animal", "vehicle", "food"} - present
    yes = bool(present) and (not missing or rng.random() < 0.5)
    kind = pick(rng, sorted(present if yes else missing))
    noun = "some food" if kind == "food" else article(kind)
    return _mme("commonsense_reasoning", f"Is there {noun} in this image?", yes)


def _mme(task: str, stem: str, yes: bool) -> QA:
    return _yes_or_no(task, stem, f" {YES_OR_NO}", yes)


def _quarter(o: Object) -> str | None:
    """The quarter of the picture that an object is clearly in."""
    if min(abs(o.x - 0.5), abs(o.y - 0.5)) < MARGIN / 2:
        return None
    return f"{'upper' if o.y < 0.5 else 'lower'} {'left' if o.x < 0.5 else 'right'}"


# Of each kind of question of MMStar's: which of four categories has a property, and the property of those of a scene.
MMSTAR: dict[str, tuple[str, Callable[[Scene], dict[str, str]]]] = {
    "coarse perception": ("Which of these is in the image?", lambda scene: dict.fromkeys(scene.counts(), "in")),
    "fine-grained perception": (
        "Which of these is at the {} of the image?",
        lambda scene: {o.category: side for o, side in sides(scene)},
    ),
    "instance reasoning": ("Which of these is facing {}?", lambda scene: {o.category: o.facing for o in fronts(scene)}),
    "logical reasoning": (
        "Which of these is in the {} quarter of the image?",
        lambda scene: {o.category: _quarter(o) for o in scene.singles() if _quarter(o)},
    ),
    "science & technology": ("Which of these can be seen?", lambda scene: dict.fromkeys(scene.counts(), "seen")),
    "math": (
        "Of which of these are there {}?",
        lambda scene: {name: NUMBERS[n] for name, n in scene.counts().items() if n > 1},
    ),
}


def mmstar(scene: Scene, rng: np.random.Generator, kind: str | None = None) -> QA | None:
    """MMStar: which of the categories A to D; of a `kind` of `MMSTAR`, else of any.

    Wrong options are categories of the scene with another property first, then absent ones.
    """
    kind = kind or pick(rng, list(MMSTAR))
    stem, properties = MMSTAR[kind]
    values = properties(scene)
    if not values:
        return None
    gold = pick(rng, list(values))
    present = [name for name in scene.counts() if name in values and values[name] != values[gold]]
    wrong = [*rng.permutation(present), *rng.permutation(absent(scene))][:3]
    options, letter = choices(gold, wrong, rng)
    listed = ", ".join(f"{x}: {option}" for x, option in zip("ABCD", options, strict=True))
    asked = stem.format(values[gold])
    return QA(f"{asked}\nOptions: {listed}\n{LETTER}", letter, asked, tuple(options), kind, letter)


_ALL = (
    *(pope, cv_bench_count, cv_bench_relation, whats_up_one, whats_up_two, mmvp),
    *(mme_existence, mme_count, mme_position, mme_commonsense, mmstar),
)
ASKERS: dict[str, Asker] = {asker.__name__: asker for asker in _ALL}


def conversation(scene: Scene, rng: np.random.Generator, turns: int) -> list[QA]:
    """Up to `turns` questions of different kinds; kinds without a clear answer are passed over."""
    askers = list(ASKERS.values())
    asked = (askers[i](scene, rng) for i in rng.permutation(len(askers)))
    return [qa for qa in asked if qa][:turns]


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A natural caption: the kinds in any order, of every other kind that is there more than once the number too."""
    phrases = []
    for name, n in scene.counts().items():
        several = f"{NUMBERS[n] if rng.random() < 0.5 else 'some'} {BY_NAME[name].plural}"
        phrases.append(article(name) if n == 1 else several)
    phrases = [str(phrase) for phrase in rng.permutation(phrases)]
    listed = " and ".join([", ".join(phrases[:-1])] * (len(phrases) > 1) + phrases[-1:])
    return f"A photo of {listed}."


def described(scene: Scene) -> str:
    """All of the scene in a sentence: every object in reading order with its facing, row and column of tokens."""
    phrases = []
    for o in scene.objects:
        facing = f" facing {o.facing}" if o.facing else ""
        phrases.append(f"{article(o.category)}{facing} at row {o.row + 1} column {o.col + 1}")
    return "A photo of " + ", ".join(phrases) + "."
