"""One strict parser for all benchmarks: which option does an answer name?

Exactly one option must be named; an answer that names none, or several, or that declines, is unparsed (None).  In
order: what a box or an answer tag holds counts alone; the options' list is cut out where the answer echoes it; what
follows "the answer is" counts alone; a reason ("because A is too dark") does not count; a letter ("(B)", "B.",
"option B") counts before an option's text, and a bare letter is always a label; the article "A" is none; "not left"
and "left is wrong" do not name left.
"""

import re
from collections.abc import Sequence

_LETTERS = "ABCDEFGH"
_FULL_WIDTH = {code + 0xFEE0: chr(code) for code in range(0x21, 0x7F)} | {0x3002: ". ", 0x3001: ", ", 0x2019: "'"}
_CHINESE_EDGE = re.compile(r"(?<=[\u3400-\u9fff])(?=[A-Za-z0-9(])|(?<=[A-Za-z0-9)])(?=[\u3400-\u9fff])")
_THOUGHT = re.compile(r"<think>.*?</think>", re.I | re.S)
_FINAL = re.compile(r"\\boxed\s*\{\s*(?:\\text\w*\s*\{)?([^{}]*)\}|<answer>(.*?)(?:</answer>|$)", re.I | re.S)
_CUE = re.compile(
    r"\b(?:answer|option|choice|letter)['\"]?\s*(?:is|would be|should be|must be|[:=])\s*:?\s*"
    r"|(?:答案|选项)\s*(?:应该|应当|应)?\s*[是为:]\s*:?\s*|(?<!不)选择?\s*:?\s*(?=\(?[A-Ha-h]\b)",
    re.I,
)
_DECLINES = re.compile(
    r"\b(?:can ?not|can't|could ?n[o']t|unable to|not able to|not (?:sure|certain|clear|possible)|unsure|uncertain"
    r"|unclear|impossible|(?:do not|don't) (?:know|have)|no (?:idea|way|clue|information|answer)|sorry|not enough"
    r"|insufficient|hard to (?:say|tell)|difficult to|neither|none of|not provided|n/a)\b"
    r"|不知道|不确定|不清楚|无法|不能|抱歉",
    re.I,
)
_TURN = re.compile(r"\b(?:but|however)\b|但", re.I)
_REASON = re.compile(r"\b(?:because|since|as opposed to)\b|因为", re.I)
_NEGATED = re.compile(r"(?:\bnot|n't|\bno|\bnever|\brather than|\binstead of)\s+(?:(?!but\b)\w+\s+){0,3}$", re.I)
_NEGATED_CHINESE = re.compile(r"(?:不是|不选|不为|不对|并非|而非|排除)\s*\(?\s*$")
_WRONG = re.compile(
    r"[\s)\].:'\"]*(?:(?:is|are|was|were)\s*(?:not\b|n't\b)|can(?:not|'t) be (?:right|correct|true)\b"
    r"|(?:(?:is|are|was|were|looks?|seems?)\s+)?(?:\w+ly\s+)?(?:wrong|incorrect|false|excluded|ruled out)\b|不对|错)",
    re.I,
)
_TOGETHER = re.compile(r"[\s)(\].'\"]*(?:,|/|&|\band\b|\bor\b|\bnor\b|和|或)[\s)(\].'\"]*(?:and\b|or\b)?[\s(]*", re.I)
_ARTICLE = re.compile(
    r"\s+(?!(?:is|or|and|because|since|as|seems|looks|would|was|cannot|must)\b|[\u3400-\u9fff])\w", re.I
)  # what makes "A" one
_LABELS = re.compile(
    r"\(\s*([A-Ha-h])\s*\)"  # (B) (b)
    r"|(?<![\w'-])([A-Ha-h])\s*\)"  # B) b)
    r"|^([A-Ha-h])(?=\s*(?:[.:,;/&]|$|or\b|and\b))"  # b. at the start, b alone
    r"|\b(?i:option|choice|letter)\s+([A-Ha-h])(?![\w'-])"  # option b
    r"|(?<![\w'-])([A-H])(?![\w'-])"  # B anywhere
    r"|(?:[,/&]|\bor|\band)\s*([a-h])(?=\W*$)"  # ... or b
    r"|\b(?i:both|either|between)\s+([a-h])(?=\s*(?:[,/&]|or\b|and\b))"  # both a ...
)
_LEADING_ARTICLE = re.compile(r"^(?:an?|the)\s+", re.I)
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER = re.compile(r"(?<![\w.,])(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?![\w,]*\d)")
_QUESTION = re.compile(r"[^.!?]*\?\s*")
_YES_NO = r"(yes|no)\b(?!\.\d|\.\s*\d+\W*$|\s*#)"  # but not "No.1"
_SPOKEN = re.compile(  # yes or no as an answer of its own, at the start of a sentence
    rf"(?:^|[.!:]\s*|\b(?:answer|it) is\s+)\W*{_YES_NO}(?!\s+(?:idea|way|clue|information|one|answer))"
)
_VERDICT = re.compile(r"(\bnot\s+|n't\s+)?\b(?:(correct|true)|(false|wrong|incorrect|untrue))\b")
_ASKED = re.compile(r"(?:please\s+)?answer\s+(?:with\s+)?(?:only\s+)?['\"]?yes['\"]?\s+or\s+['\"]?no['\"]?\.?", re.I)


def keys(benchmark: str, options: Sequence[str] = ()) -> list[str]:
    """How answers to a question are written, in the options' order.

    "A" to "F" for cv_bench and mmstar, "(a)" and "(b)" for mmvp, the words themselves in lower case for whats_up, "yes"
    and "no" for pope and mme.  ValueError: an unknown benchmark, or no options where they are needed.
    """
    family = next((f for f in ("cv_bench", "mmvp", "whats_up", "pope", "mmstar", "mme") if benchmark.startswith(f)), "")
    if family in ("pope", "mme"):
        return ["yes", "no"]
    if not family or not options:
        raise ValueError(f"answers are read of a known benchmark with its options, not of {benchmark!r}, {options!r}")
    if family == "whats_up":
        return [str(option).lower() for option in options]
    letters = list(_LETTERS[: len(options)])
    return [f"({letter.lower()})" for letter in letters] if family == "mmvp" else letters


def key(benchmark: str, text: object, options: Sequence[str] = ()) -> str | None:
    """The one of `keys` that a data set's own key stands for ("(C)" for C, "Yes", "Bottom"); None if it is none."""
    bare = str(text).strip().strip("().").lower()
    return next((k for k in keys(benchmark, options) if k.strip("()").lower() == bare), None)


def parse_answer(benchmark: str, response: str, options: Sequence[str] = ()) -> str | None:
    """The option that `response` names, as one of `keys`, or None.  Errors as of `keys`.

    `benchmark`: one of `BENCHMARKS`; its family ("pope", "whats_up") will do.
    """
    names = keys(benchmark, options)
    text = _clean(_THOUGHT.sub(" ", response))
    boxes = {_clean(boxed or tagged) for boxed, tagged in _FINAL.findall(text)}
    if len(boxes) > 1:
        return None
    text = boxes.pop() if boxes else text
    if names == ["yes", "no"]:
        return _yes_or_no(text)
    index = _choose(text, [_option_text(o, i) for i, o in enumerate(options)], not benchmark.startswith("whats_up"))
    return None if index is None else names[index]


def _clean(text: str) -> str:
    """One line without markup or quotes around it, in plain punctuation, Chinese set off by spaces."""
    text = _CHINESE_EDGE.sub(" ", text.translate(_FULL_WIDTH))
    return re.sub(r"\s+", " ", re.sub(r"[*`_$]+", "", text)).strip(" \"'")


def _option_text(text: str, index: int) -> str:
    """An option without a label of its own and without a final full stop."""
    letter = _LETTERS[index]
    return re.sub(rf"^(?:\({letter}\)|{letter}[.:)])\s*", "", _clean(str(text)), flags=re.I).rstrip(" .")


def _plain_numbers(text: str) -> str:
    """Numbers in one form: 1,000 as 1000, 3.0 as 3."""
    return _NUMBER.sub(lambda m: m[1].replace(",", "") + (m[2] or "").rstrip("0").rstrip("."), text)


def _choose(text: str, options: Sequence[str], letters: bool) -> int | None:
    """Index of the one option that is named, or None."""
    alone = text.rstrip(" .!").lower()
    bare_label = letters and len(alone) == 1 and alone.upper() in _LETTERS[: len(options)]
    exact = [i for i, option in enumerate(options) if option and option.lower() == alone]
    if len(exact) == 1 and not bare_label:
        return exact[0]
    numbers = [_plain_numbers(option) for option in options]
    if len(set(numbers)) == len(set(options)):  # unless 3 and 3.0 are two options
        text, options = _plain_numbers(text), numbers
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
    """The one option that a passage names by letter or, where it holds no letter, by text; reasons do not count."""
    reason = _REASON.search(text)
    if reason and text[: reason.start()].strip():
        index = _named(text[: reason.start()].strip(), options, letters)
        if index is not None:
            return index
    places = _text_places(text, options)
    labels = _label_places(text, options, places) if letters else []
    said = _DECLINES.search(text)
    if said and not (labels and labels[0][0] == 0):
        turn = _TURN.search(text, said.end())
        return _named(text[turn.end() :].strip(), options, letters) if turn else None
    found = _affirmed(text, labels or places)
    if len(found) != 1:
        return None
    (index,) = found
    texts = {other for _, _, other in places if not (letters and options[other].upper() in _LETTERS)}
    return None if labels and len(texts) == 1 and texts != {index} else index  # "B. three" where three is C


def _affirmed(text: str, places: list[tuple[int, int, int]]) -> set[int]:
    """The options at these places that are neither negated before them nor called wrong behind them."""
    found = set()
    following, wrong = None, False  # the place behind, and whether it is called wrong
    for start, end, index in reversed(places):
        joined = following is not None and _TOGETHER.fullmatch(text[end:following])  # "A and C are wrong"
        wrong = bool(_WRONG.match(text, end)) or bool(joined and wrong)
        following = start
        if not (wrong or _NEGATED.search(text[:start]) or _NEGATED_CHINESE.search(text[:start])):
            found.add(index)
    return found


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
        before = r"[\w.,−-]" if bare[index][0].isdigit() else r"[\w.]"  # 3 is in neither -3 nor 1-3
        for match in re.finditer(rf"(?<!{before}){re.escape(bare[index])}(?![\w]|[.,-]\d)", text, flags=re.I):
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
    words = set(re.findall(rf"\b{_YES_NO}", text))
    if words:
        return words.pop() if len(words) == 1 else None
    verdicts = {bool(negation) == bool(right) for negation, right, _ in _VERDICT.findall(text)}  # whether it says no
    if verdicts:
        return None if len(verdicts) > 1 else ("no" if verdicts.pop() else "yes")
    if re.search(r"\b(?:not|never|none|nothing|absent)\b|n't\b", text):
        return "no"
    return "yes" if re.match(r"(?:there(?:'s| is| are)|it(?:'s| is| does| has)|i (?:can )?see)\b", text) else None
