"""Names of the benchmarks, and how their answers are read."""

from collections.abc import Mapping, Sequence

from workbook.benchmarks import cv_bench, mme, mmstar, mmvp, pope, whats_up
from workbook.benchmarks.parse import parse_answer

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
PAPER = {family: tuple(module.EXPECTED) for family, module in MODULES.items()}


def family(benchmark: str) -> str:
    """The paper's benchmark that `benchmark` is, or is a part of.  ValueError for an unknown name."""
    for name, parts in PAPER.items():
        if benchmark in (name, *parts):
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
