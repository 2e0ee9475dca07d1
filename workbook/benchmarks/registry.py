"""Names of the benchmarks, and how their answers are read."""

from collections.abc import Mapping, Sequence

from workbook.benchmarks import cv_bench, mme, mmstar, mmvp, pope, whats_up
from workbook.benchmarks.parse import key, keys, parse_answer

MODULES = {
    "cv_bench": cv_bench,
    "mmvp": mmvp,
    "whats_up": whats_up,
    "pope": pope,
    "mmstar": mmstar,
    "mme": mme,
}
EXPECTED = {name: expected for module in MODULES.values() for name, expected in module.EXPECTED.items()}
BENCHMARKS = tuple(EXPECTED)
PAPER = {family: getattr(module, "PAPER", tuple(module.EXPECTED)) for family, module in MODULES.items()}


def family(benchmark: str) -> str:
    """The paper's benchmark that `benchmark` is, or is a part of.  ValueError for an unknown name."""
    for name, module in MODULES.items():
        if benchmark in (name, *module.EXPECTED):
            return name
    raise ValueError(f"unknown benchmark {benchmark!r}: one of {', '.join([*BENCHMARKS, 'whats_up', 'pope'])}")


def read(benchmark: str, rows: Sequence[Mapping], rule: str) -> list[str | None]:
    """The options that the responses name under the `official` or the `strict` rule."""
    if rule == "official":
        official = MODULES[family(benchmark)].official
        return [official(row) for row in rows]
    if rule == "strict":
        return [parse_answer(benchmark, row["response"], row["options"]) for row in rows]
    raise ValueError(f"unknown rule {rule!r}: official or strict")


def checked(benchmark: str, rows: Sequence[Mapping]) -> list[dict]:
    """Answered rows as `load_rows` makes them, with keys in the form of `parse_answer`.

    Raises:
        ValueError: a row lacks something, or its key or category does not exist; names the row and what is right.
    """
    module, result = MODULES[family(benchmark)], []
    categories = getattr(module, "CATEGORIES", None)
    columns = ("id", "options", "answer", "group", "category", *getattr(module, "COLUMNS", ()))
    for number, row in enumerate(rows, 1):
        name = f"{benchmark}, row {row.get('id', number)}"
        missing = [column for column in columns if row.get(column) is None]
        if missing:
            raise ValueError(f"{name} has no {', '.join(missing)}: score rows of load_rows, with a `response` each")
        if not isinstance(row.get("response"), str):
            raise ValueError(
                f"{name}: the response is {row.get('response')!r}; give the text, an empty one for silence"
            )
        answers = {c: key(benchmark, row[c], row["options"]) for c in ("answer", "corrected_answer") if c in row}
        if None in answers.values():
            raise ValueError(f"{name}: the key {row['answer']!r} is none of {keys(benchmark, row['options'])}")
        if categories and row["category"] not in categories:
            raise ValueError(f"{name}: the category {row['category']!r} is none of {', '.join(categories)}")
        result.append({**row, **answers})
    return result
