"""Names of the benchmarks, and how their answers are read."""

from collections.abc import Mapping, Sequence

from workbook.benchmarks.benchmark import Benchmark
from workbook.benchmarks.multiple_choice import MMVP, CVBench, MMStar, WhatsUp
from workbook.benchmarks.parse import key, keys, parse_answer
from workbook.benchmarks.yes_no import MME, POPE

FAMILIES: dict[str, Benchmark] = {
    "cv_bench": CVBench(),
    "mmvp": MMVP(),
    "whats_up": WhatsUp(),
    "pope": POPE(),
    "mmstar": MMStar(),
    "mme": MME(),
}
EXPECTED = {name: expected for one in FAMILIES.values() for name, expected in one.expected.items()}
BENCHMARKS = tuple(EXPECTED)
PAPER = {name: tuple(one.paper or one.expected) for name, one in FAMILIES.items()}


def family(benchmark: str) -> str:
    """The paper's benchmark that `benchmark` is, or is a part of.  ValueError for an unknown name."""
    for name, one in FAMILIES.items():
        if benchmark in (name, *one.expected):
            return name
    raise ValueError(f"unknown benchmark {benchmark!r}: one of {', '.join([*BENCHMARKS, 'whats_up', 'pope'])}")


def read(benchmark: str, rows: Sequence[Mapping], rule: str) -> list[str | None]:
    """The options that the responses name under the `official` or the `strict` rule."""
    if rule == "official":
        return [FAMILIES[family(benchmark)].official(row) for row in rows]
    return [parse_answer(benchmark, row["response"], row["options"]) for row in rows]


def checked(benchmark: str, rows: Sequence[Mapping]) -> list[dict]:
    """Answered rows as `load_rows` makes them, with keys in the form of `parse_answer`.

    ValueError names a row that lacks something, or whose key or category does not exist, and what is right.
    """
    spec, result = FAMILIES[family(benchmark)], []
    for number, row in enumerate(rows, 1):
        name = f"{benchmark}, row {row.get('id', number)}"
        columns = ("id", "options", "answer", "group", "category", *spec.groups)
        missing = [column for column in columns if row.get(column) is None]
        if missing:
            raise ValueError(f"{name} has no {', '.join(missing)}: score rows of load_rows, with a `response` each")
        if not isinstance(row.get("response"), str):
            raise ValueError(f"{name}: the response is {row.get('response')!r}; give the text, empty for silence")
        answers = {c: key(benchmark, row[c], row["options"]) for c in ("answer", "corrected_answer") if c in row}
        if None in answers.values():
            raise ValueError(f"{name}: the key {row['answer']!r} is none of {keys(benchmark, row['options'])}")
        if row["category"] not in spec.categories:
            raise ValueError(f"{name}: the category {row['category']!r} is none of {', '.join(spec.categories)}")
        result.append({**row, **answers})
    return result
