"""Questions, answers and captions about a scene of the embedded world, worded as the benchmarks word theirs.

Each asker takes a scene and a generator and returns a `QA`, or None where the scene gives no clear answer.  The
instruction mix, the text lessons of the language models and the benchmark files all ask through these functions, so
that a model is asked in evaluation what it was taught in training.  Relations are asked of two objects in one row
(left, right) or in one column (above, below), and the side of the photo only of objects in a border cell that is no
corner: everything asked has exactly one right answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from workbook.world.scenes import BY_NAME, CATEGORIES, GRID, MAX_COUNT, Object, Scene

SINGLE_WORD = "Answer the question using a single word or phrase."
YES_OR_NO = "Please answer yes or no."
LETTER = "Answer with the option's letter from the given choices directly."
THE_ANSWER = ": the answer is"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
ROWS = ("top", "upper", "lower", "bottom")
COLUMNS = ("far-left", "mid-left", "mid-right", "far-right")
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
ACROSS = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


@dataclass(frozen=True)
class QA:
    """One question.  `text` is the whole user turn, `answer` the scoring key, `told` the reply to be learned.

    `stem` is the bare question and `options` the choices in order, where the benchmark's file keeps them apart.
    A reply that names an option's text before its letter is an easier lesson for a tiny model than the letter alone.
    """

    task: str
    text: str
    answer: str
    stem: str
    options: tuple[str, ...] = ()
    category: str = ""
    reply: str = ""

    @property
    def told(self) -> str:
        return self.reply or self.answer


Asker = Callable[[Scene, np.random.Generator], QA | None]


def pick(rng: np.random.Generator, items: Sequence):
    return items[int(rng.integers(len(items)))]


def article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def singles(scene: Scene) -> list[Object]:
    """The objects that are the only one of their category, so that "the dog" is one thing."""
    counts = scene.counts()
    return [o for o in scene.objects if counts[o.category] == 1]


def relation_of(a: Object, b: Object) -> str | None:
    """Where `a` is with respect to `b`: left, right, above, below; None unless they share a row or a column."""
    if a.row == b.row:
        return "left" if a.col < b.col else "right"
    if a.col == b.col:
        return "above" if a.row < b.row else "below"
    return None


def side_of(o: Object) -> str | None:
    """The border of the photo that `o` touches: left, right, top, bottom; None in a corner or inside."""
    touched = {"top": o.row == 0, "bottom": o.row == GRID - 1, "left": o.col == 0, "right": o.col == GRID - 1}
    sides = [side for side, touches in touched.items() if touches]
    return sides[0] if len(sides) == 1 else None


def _related(scene: Scene, rng: np.random.Generator) -> tuple[Object, Object, str] | None:
    pairs = [(a, b, r) for a in singles(scene) for b in singles(scene) if a is not b and (r := relation_of(a, b))]
    return pick(rng, pairs) if pairs else None


def _choices(rng: np.random.Generator, gold: str, others: Sequence[str], letters: str) -> tuple[list[str], str]:
    """Shuffle gold among others; return the options and the letter of the gold one."""
    options = [gold, *others]
    options = [options[i] for i in rng.permutation(len(options))]
    return options, letters[options.index(gold)]


def reasoned(option: str, letter: str) -> str:
    """A reply that says the option before its letter, in a form that CV-Bench's scorers read."""
    return f"{option}{THE_ANSWER} {letter}"


def pope(scene: Scene, rng: np.random.Generator) -> QA:
    """POPE: existence, half present and half absent."""
    present = list(scene.counts())
    absent = [c.name for c in CATEGORIES if c.name not in present]
    yes = rng.random() < 0.5
    return pope_about(pick(rng, present if yes else absent), yes)


def pope_about(name: str, yes: bool) -> QA:
    stem = f"Is there {article(name)} in the image?"
    return QA("existence", f"{stem}\n{SINGLE_WORD}", "Yes" if yes else "No", stem, ("yes", "no"), "existence")


def cv_bench_count(scene: Scene, rng: np.random.Generator) -> QA:
    """CV-Bench 2D Count: four to six numbers to choose from."""
    counts = scene.counts()
    name = pick(rng, list(counts))
    others = [str(n) for n in rng.permutation(len(NUMBERS) - 1) if n != counts[name]][: int(rng.integers(3, 6))]
    options, letter = _choices(rng, str(counts[name]), others, "ABCDEF")
    stem = f"How many {BY_NAME[name].plural} are in the image?"
    return _cv_bench("Count", stem, options, letter)


def cv_bench_relation(scene: Scene, rng: np.random.Generator) -> QA | None:
    """CV-Bench 2D Relation: left or right, above or below."""
    if not (found := _related(scene, rng)):
        return None
    a, b, relation = found
    options, letter = _choices(rng, relation, [OPPOSITE[relation]], "AB")
    stem = (f"Considering the relative positions of the {a.category} and the {b.category} in the image provided, "
            f"where is the {a.category} located with respect to the {b.category}?")  # fmt: skip
    return _cv_bench("Relation", stem, options, letter)


def _cv_bench(task: str, stem: str, options: Sequence[str], letter: str) -> QA:
    listed = "\n".join(f"({x}) {o}" for x, o in zip("ABCDEF", options, strict=False))
    text = f"{stem} Select from the following choices.\n{listed}\n{LETTER}"
    return QA(task.lower(), text, letter, stem, tuple(options), task, reasoned(options["ABCDEF".index(letter)], letter))


def whats_up_one(scene: Scene, rng: np.random.Generator) -> QA | None:
    """What's Up COCO-one: on which side of the photo is an object."""
    found = [(o, s) for o in singles(scene) if (s := side_of(o))]
    if not found:
        return None
    o, side = pick(rng, found)
    stem = f"Where is the {o.category} in the photo? Answer with left, right, top or bottom."
    return QA("side", stem, side.capitalize(), stem, ("left", "right", "top", "bottom"), "one", side)


def whats_up_two(scene: Scene, rng: np.random.Generator) -> QA | None:
    """What's Up COCO-two: where one object is in relation to another."""
    if not (found := _related(scene, rng)):
        return None
    a, b, relation = found
    stem = f"Where is the {a.category} in relation to the {b.category}? Answer with left, right, above or below."
    return QA("relation", stem, relation.capitalize(), stem, ("left", "right", "above", "below"), "two", relation)


def mmvp(scene: Scene, rng: np.random.Generator) -> QA | None:
    """MMVP: one visual attribute that a contrastive encoder need not keep, here the facing of an object."""
    facing = [o for o in singles(scene) if o.facing]
    return mmvp_about(pick(rng, facing), rng.random() < 0.5) if facing else None


def mmvp_about(o: Object, left_first: bool) -> QA:
    options = ("Left", "Right") if left_first else ("Right", "Left")
    told = o.facing.capitalize()
    letter = "ab"[options.index(told)]
    stem = f"Is the {o.category} facing left or right?"
    text = f"{stem}\n(a) {options[0]} (b) {options[1]}\n{LETTER}"
    return QA("facing", text, f"({letter})", stem, options, "facing", o.facing)


def mme_existence(scene: Scene, rng: np.random.Generator) -> QA:
    present = list(scene.counts())
    absent = [c.name for c in CATEGORIES if c.name not in present]
    yes = rng.random() < 0.5
    stem = f"Is there {article(pick(rng, present if yes else absent))} in this image?"
    return _mme("existence", stem, yes)


def mme_count(scene: Scene, rng: np.random.Generator) -> QA:
    counts = scene.counts()
    name = pick(rng, list(counts))
    yes = rng.random() < 0.5
    near = [n for n in (counts[name] - 1, counts[name] + 1) if 1 <= n <= MAX_COUNT]
    n = counts[name] if yes else pick(rng, near)
    stem = f"Is there {NUMBERS[n]} {name}" if n == 1 else f"Are there {NUMBERS[n]} {BY_NAME[name].plural}"
    return _mme("count", f"{stem} in this image?", yes)


def mme_position(scene: Scene, rng: np.random.Generator) -> QA | None:
    found = [(o, s) for o in singles(scene) if (s := side_of(o))]
    if not found:
        return None
    o, side = pick(rng, found)
    yes = rng.random() < 0.5
    return _mme("position", f"Is the {o.category} at the {side if yes else ACROSS[side]} of this image?", yes)


def mme_commonsense(scene: Scene, rng: np.random.Generator) -> QA:
    """MME's commonsense reasoning: needs to know what kind of thing a category is."""
    kinds = {BY_NAME[n].kind for n in scene.counts()} - {"thing"}
    absent = {"animal", "vehicle", "food"} - kinds
    yes = bool(kinds) and (not absent or rng.random() < 0.5)
    kind = pick(rng, sorted(kinds if yes else absent))
    stem = f"Is there {'some food' if kind == 'food' else article(kind)} in this image?"
    return _mme("commonsense_reasoning", stem, yes)


def _mme(task: str, stem: str, yes: bool) -> QA:
    return QA(f"mme_{task}", f"{stem} {YES_OR_NO}", "Yes" if yes else "No", stem, ("yes", "no"), task)


def mmstar(scene: Scene, rng: np.random.Generator) -> QA | None:
    """MMStar: which of four categories A to D, in six kinds of question."""
    return MMSTAR[pick(rng, list(MMSTAR))](scene, rng)


def _mmstar(
    category: str, stem: str, right: Sequence[str], wrong: Sequence[str], rng: np.random.Generator
) -> QA | None:
    """One of `right` and three of `wrong`; None where there are not as many."""
    if not right or len(wrong) < 3:
        return None
    others = [wrong[i] for i in rng.choice(len(wrong), 3, replace=False)]
    options, letter = _choices(rng, pick(rng, right), others, "ABCD")
    listed = ", ".join(f"{x}: {o}" for x, o in zip("ABCD", options, strict=True))
    return QA("mmstar", f"{stem}\nOptions: {listed}\n{LETTER}", letter, stem, tuple(options), category)


def _mmstar_which(category: str, stem: str, holds: Callable[[list[Object]], bool]) -> Asker:
    """For which of four categories a property of its objects in the scene (none, perhaps) holds."""

    def asker(scene: Scene, rng: np.random.Generator) -> QA | None:
        right = [c.name for c in CATEGORIES if holds(scene.of(c.name))]
        present, names = scene.counts(), [c.name for c in CATEGORIES if c.name not in right]
        # Categories that are present, but wrong, are the harder options: they come first where there are any.
        wrong = sorted(names, key=lambda name: (name not in present, rng.random()))[:3]
        return _mmstar(category, stem, right, wrong, rng)

    return asker


def _mmstar_single(category: str, stem: str, of: Callable[[Object], str | None]) -> Asker:
    """Which of four categories has a property that a single object has or has not, such as a facing or a place."""

    def asker(scene: Scene, rng: np.random.Generator) -> QA | None:
        has = {o.category: said for o in singles(scene) if (said := of(o))}
        if not has:
            return None
        gold, present = pick(rng, list(has)), scene.counts()
        others = [name for name, said in has.items() if said != has[gold]]
        wrong = [*others, *(c.name for c in CATEGORIES if c.name not in present)]
        return _mmstar(category, stem.format(has[gold]), [gold], wrong, rng)

    return asker


MMSTAR: dict[str, Asker] = {
    "coarse perception": _mmstar_which("coarse perception", "Which of these is in the image?", bool),
    "fine-grained perception": _mmstar_single(
        "fine-grained perception", "Which of these is at the {} of the image?", side_of
    ),
    "instance reasoning": _mmstar_single("instance reasoning", "Which of these is facing {}?", lambda o: o.facing),
    "logical reasoning": _mmstar_single(
        "logical reasoning", "Which of these is at the {}?", lambda o: f"{ROWS[o.row]} {COLUMNS[o.col]}"
    ),
    "science & technology": _mmstar_which("science & technology", "Which of these can be seen?", bool),
    "math": _mmstar_which("math", "Which of these is there more than once?", lambda found: len(found) > 1),
}

ASKERS: dict[str, Asker] = {
    "pope": pope,
    "cv_bench_count": cv_bench_count,
    "cv_bench_relation": cv_bench_relation,
    "whats_up_one": whats_up_one,
    "whats_up_two": whats_up_two,
    "mmvp": mmvp,
    "mme_existence": mme_existence,
    "mme_count": mme_count,
    "mme_position": mme_position,
    "mme_commonsense": mme_commonsense,
    "mmstar": mmstar,
}


def described(scene: Scene) -> str:
    """The scene in a sentence: every object in reading order with its facing and place."""
    said = []
    for o in scene.objects:
        facing = f" facing {o.facing}" if o.facing else ""
        said.append(f"{article(o.category)}{facing} at the {ROWS[o.row]} {COLUMNS[o.col]}")
    return "A photo of " + ", ".join(said) + "."


def caption(scene: Scene) -> str:
    """Stage-1 caption: what each cell shows, in reading order, then which way it faces, then where single objects are.

    One word a cell, so that every word is about one visual token at a fixed distance: a projector learns from that at
    once, and from sentences hardly at all, because a frozen language model looks for a noun by its content, and
    features that are not yet words have none.
    """
    what, facing = ["nothing"] * (GRID * GRID), ["none"] * (GRID * GRID)
    for o in scene.objects:
        what[o.cell], facing[o.cell] = o.category, o.facing or "none"
    places = [f"at {o.category} {ROWS[o.row]} {COLUMNS[o.col]}" for o in singles(scene)]
    return " ".join([*what, *facing, *places])


def conversation(scene: Scene, rng: np.random.Generator, turns: int, askers: Sequence[Asker]) -> list[QA]:
    """Up to `turns` different questions about a scene; askers without a clear answer are passed over."""
    found = (ask(scene, rng) for ask in (askers[i] for i in rng.permutation(len(askers))))
    return [qa for qa in found if qa][:turns]


def spelled_out(scene: Scene) -> list[tuple[str, ...]]:
    """The scene in words, cell by cell in reading order: ("nothing",), ("dog", "upper", "far-left", "left"), ..."""
    cells: list[tuple[str, ...]] = [("nothing",)] * (GRID * GRID)
    for o in scene.objects:
        cells[o.cell] = (o.category, ROWS[o.row], COLUMNS[o.col], *([o.facing] if o.facing else []))
    return cells
