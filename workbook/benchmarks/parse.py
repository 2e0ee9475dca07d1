"""One strict parser for all benchmarks: which option does an answer name?

Exactly one option must be named; an answer that names none, or several, or that declines, is unparsed (None).  In
order: the options' list is cut out where the answer echoes it; what follows "the answer is" counts alone; a letter
("(B)", "B.", "option B") counts before an option's text; the article "A" is no letter; "not left" does not name left.
"""

import re
from collections.abc import Sequence

_LETTERS = "ABCDEFGH"
_CUE = re.compile(r"\b(?:answer|option|choice|letter)\s*(?:is|would be|should be|must be|[:=])\s*:?\s*", re.I)
_DECLINES = re.compile(
    r"\b(?:can ?not|can't|could ?n[o']t|unable to|not able to|not (?:sure|certain|clear|possible)|unsure|uncertain"
    r"|unclear|impossible|(?:do not|don't) (?:know|have)|no (?:idea|way|clue|information|answer)|sorry|not enough"
    r"|insufficient|hard to (?:say|tell)|difficult to|neither|none of|not provided|n/a)\b",
    re.I,
)
_TURN = re.compile(r"\b(?:but|however)\b", re.I)
_NEGATED = re.compile(r"(?:\bnot|n't|\bno|\bnever|\brather than|\binstead of)\s+(?:(?!but\b)\w+\s+){0,3}$", re.I)
_ARTICLE = re.compile(r"\s+(?!(?:is|or|and|because|since|as|seems|looks|would|was)\b)\w", re.I)  # what makes "A" one
_LABELS = re.compile(
    r"\(\s*([A-Ha-h])\s*\)"  # (B) (b)
    r"|(?<![\w'-])([A-Ha-h])\s*\)"  # B) b)
    r"|^([A-Ha-h])(?=\s*(?:[.:,;/&]|$|or\b|and\b))"  # b. at the start, b alone
    r"|\b(?:option|choice|letter)\s+([A-Ha-h])(?![\w'-])"  # option b
    r"|(?<![\w'-])([A-H])(?![\w'-])"  # B anywhere
    r"|(?:[,/&]|\bor|\band)\s*([a-h])(?=\W*$)"  # ... or b
)
_LEADING_ARTICLE = re.compile(r"^(?:an?|the)\s+", re.I)
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_QUESTION = re.compile(r"[^.!?]*\?\s*")
_SPOKEN = re.compile(  # yes or no as an answer of its own, at the start of a sentence
    r"(?:^|[.!:]\s*|\b(?:answer|it) is\s+)\W*(yes|no)\b(?!\s+(?:idea|way|clue|information|one|answer))"
)
_ASKED = re.compile(r"(?:please\s+)?answer\s+(?:with\s+)?(?:only\s+)?['\"]?yes['\"]?\s+or\s+['\"]?no['\"]?\.?", re.I)


def parse_answer(benchmark: str, response: str, options: Sequence[str] = ()) -> str | None:
    """The option that `response` names, as the benchmark's key writes it, or None.

    Args:
        benchmark: one of `BENCHMARKS`; its family ("pope", "whats_up") will do.
        options: the options' texts in order; not needed for the yes/no benchmarks.

    Returns:
        "A" to "F" for cv_bench and mmstar, "(a)" or "(b)" for mmvp, the word itself in lower case for whats_up,
        "yes" or "no" for pope and mme.

    Raises:
        ValueError: an unknown benchmark, or no options where they are needed.
    """
    family = next((f for f in ("cv_bench", "mmvp", "whats_up", "pope", "mmstar", "mme") if benchmark.startswith(f)), "")
    if family in ("pope", "mme"):
        return _yes_or_no(_clean(response))
    if not family or not options:
        raise ValueError(f"parse_answer needs a known benchmark and its options, got {benchmark!r} and {options!r}")
    texts = [_option_text(text, i) for i, text in enumerate(options)]
    index = _choose(_clean(response), texts, letters=family != "whats_up")
    if index is None:
        return None
    letter = _LETTERS[index]
    return {"mmvp": f"({letter.lower()})", "whats_up": texts[index].lower()}.get(family, letter)


def _clean(text: str) -> str:
    """One line without markup or quotes around it."""
    return re.sub(r"\s+", " ", re.sub(r"[*`_]+", "", text.replace("’", "'"))).strip(" \"'")


def _option_text(text: str, index: int) -> str:
    """An option without a label of its own and without a final full stop."""
    letter = _LETTERS[index]
    return re.sub(rf"^(?:\({letter}\)|{letter}[.:)])\s*", "", _clean(str(text)), flags=re.I).rstrip(" .")


def _choose(text: str, options: Sequence[str], letters: bool) -> int | None:
    """Index of the one option that is named, or None."""
    alone = text.rstrip(" .!").lower()
    exact = [i for i, option in enumerate(options) if option and option.lower() == alone]
    if len(exact) == 1:
        return exact[0]
    rest = _without_echo(text, options, letters)
    cues = list(_CUE.finditer(rest))
    if cues:
        ends = [cue.start() for cue in cues[1:]] + [len(rest)]
        named = {_named(rest[cue.end() : end].strip(), options, letters) for cue, end in zip(cues, ends, strict=True)}
        return named.pop() if len(named) == 1 else None
    return _named(rest, options, letters)


def _without_echo(text: str, options: Sequence[str], letters: bool) -> str:
    """Cut out a full list of the options, in their order, with labels or as words."""
    pieces = []
    for i, option in enumerate(options):
        label = rf"\(?{_LETTERS[i]}(?:\)|[.:])?\s*" if letters else ""
        pieces.append(label + re.escape(option) + r"\W*?")
    listed = r"\s*[,;]?\s*(?:(?:or|and)\s+)?".join(pieces)
    return re.sub(rf"(?<!\w){listed}(?=\W|$)[.,;]?\s*", " ", text, flags=re.I).strip()


def _named(text: str, options: Sequence[str], letters: bool) -> int | None:
    """The one option that a passage names by letter or, where it holds no letter, by text."""
    places = _text_places(text, options)
    labels = _label_places(text, options, places) if letters else []
    said = _DECLINES.search(text)
    if said and not (labels and labels[0][0] == 0):
        turn = _TURN.search(text, said.end())
        return _named(text[turn.end() :].strip(), options, letters) if turn else None
    found = {index for start, _, index in labels or places if not _NEGATED.search(text[:start])}
    if len(found) != 1:
        return None
    (index,) = found
    texts = {other for _, _, other in places}
    return None if labels and len(texts) == 1 and texts != {index} else index  # "B. three" where three is C


def _text_places(text: str, options: Sequence[str]) -> list[tuple[int, int, int]]:
    """(start, end, option) wherever an option's text stands as whole words; longer texts take precedence."""
    if all(option.isdecimal() for option in options):
        for number, word in enumerate(_NUMBERS):  # of the same length, so that places stay right
            text = re.sub(rf"\b{word}\b", str(number).rjust(len(word)), text, flags=re.I)
    bare = [_LEADING_ARTICLE.sub("", option) or option for option in options]
    places: list[tuple[int, int, int]] = []
    for index in sorted(range(len(bare)), key=lambda i: -len(bare[i])):
        if not bare[index]:
            continue
        for match in re.finditer(rf"(?<![\w.]){re.escape(bare[index])}(?![\w]|\.\d)", text, flags=re.I):
            if not any(start < match.end() and match.start() < end for start, end, _ in places):
                places.append((match.start(), match.end(), index))
    return sorted(places)


def _label_places(text: str, options: Sequence[str], places: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """(start, end, option) of letters that stand for options: no article, no part of an option's longer text."""
    found = []
    for match in _LABELS.finditer(text):
        group = match.lastindex
        letter, start, end = match[group].upper(), match.start(group), match.end(group)
        index = _LETTERS.index(letter)
        inside = any(s <= start and end <= e and e - s > 1 for s, e, _ in places)
        article = letter == "A" and group == 5 and _ARTICLE.match(text, end)
        if index < len(options) and not inside and not article:
            found.append((match.start() if group == 1 else start, end, index))
    return found


def _yes_or_no(text: str) -> str | None:
    """Yes or no: said so, or as a verdict ("Incorrect"), or as a statement ("There is no dog")."""
    text = _QUESTION.sub("", _ASKED.sub(" ", text)).strip(" .,\"'").lower()
    text = re.sub(r"\b(?:yeah|yep|yup)\b", "yes", re.sub(r"\b(?:nope|nah)\b", "no", text))
    if re.match(r"(?:yes|no)\s*(?:,|/|or|and)\s*(?:yes|no)\b", text):
        return None
    spoken = _SPOKEN.findall(text)
    if spoken:
        return spoken[0] if len(set(spoken)) == 1 else None
    said = _DECLINES.search(text)
    if said:
        turn = _TURN.search(text, said.end())
        return _yes_or_no(text[turn.end() :]) if turn else None
    words = set(re.findall(r"\b(?:yes|no)\b", text))
    if words:
        return words.pop() if len(words) == 1 else None
    if verdicts := re.findall(r"\b(not\s+)?(in)?(correct|true)\b|\b(false|wrong|incorrect)\b", text):
        said_no = {bool(negation or prefix or wrong) for negation, prefix, _, wrong in verdicts}
        return None if len(said_no) > 1 else ("no" if said_no.pop() else "yes")
    if re.search(r"\b(?:not|never|none|nothing|absent)\b|n't\b", text):
        return "no"
    return "yes" if re.match(r"(?:there(?:'s| is| are)|it(?:'s| is| does| has)|i (?:can )?see)\b", text) else None
