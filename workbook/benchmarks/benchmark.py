"""What one of the six benchmarks says of itself: its official files, prompts, official rule and scores."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from workbook.benchmarks.sources import Row, parquet_rows

Members = Sequence[tuple[Mapping, str | None]]  # the rows of a cluster, and the option that each answer names
LETTER_INSTRUCTION = "Answer with the option's letter from the given choices directly."
WORD_INSTRUCTION = "Answer the question using a single word or phrase."


class Benchmark:
    """Base of the six.

    Attributes:
        expected: of each of its files, by the names of `BENCHMARKS`, the totals to insist on: `rows`, a number or a
            tuple of admitted ones, and perhaps `categories`, a number for each.
        paper: those of them that the paper's number is the mean of; all by default.
        columns: of a file, and which columns of a row they are.
        parquet: the files, as a pattern, unless `read` says otherwise.
        categories: what they are; groups: further columns of a row whose values have a score each.
        first_id: where given, ids are numbers that run from here without a gap.
        stratified: whether each category is a stratum, whose number of clusters is fixed.
    """

    expected: Mapping[str, Mapping]
    paper: Sequence[str] = ()
    columns: type[Row]
    parquet = ""
    categories: Sequence[str] = ("",)
    groups: Sequence[str] = ()
    first_id: int | None = None
    stratified = False

    def read(self, name: str, folder: Path, photos: bool) -> tuple[object, Iterable]:
        """The file, for messages, and its entries; without `photos`, images need not be read."""
        return folder / self.parquet, parquet_rows(folder, self.parquet, photos)

    def row(self, name: str, row: Mapping, folder: Path, expected: Mapping) -> dict:
        """What a row has besides what its file says, or in place of it."""
        return {}

    def faults(self, rows: Sequence[dict]) -> Iterable[str]:
        """What is wrong with the rows that only this benchmark asks for."""
        return ()

    def official(self, row: Mapping) -> str | None:
        """The option that the response of a row names by the benchmark's own rule."""
        raise NotImplementedError

    def values(self, members: Members) -> Iterable[dict[str, float]]:
        """What a cluster adds to the means that `scores` takes: a value by name, of every question or pair.

        By default whether a question is answered rightly, for all of them, its category and its `groups`.
        """
        for row, answer in members:
            names = ("official", row["category"], *(row[column] for column in self.groups))
            yield dict.fromkeys(names, answer == row["answer"])

    def scores(self, means: Mapping[str, Mapping]) -> dict:
        """The scores, `official` first, from the means of each stratum."""
        return dict(means[""])
