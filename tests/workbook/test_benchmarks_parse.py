"""The strict parser: one row per case."""

import pytest

from workbook.benchmarks import parse_answer
from workbook.benchmarks.parse import key

COUNTS = ["4", "2", "3", "1"]
SIX = ["5", "0", "3", "1", "2", "4"]
ANIMALS = ["a dog", "a cat", "two dogs", "none of these animals"]
SPATIAL = ["left", "right"]
MMSTAR = ["The suitcase is on the book.", "The suitcase is beneath the cat.", "Hepatitis B", "Cannot be determined"]
ONE = ["left", "right", "top", "bottom"]
TWO = ["left", "right", "above", "below"]


@pytest.mark.parametrize(
    ("response", "options", "expected"),
    [
        # the letter, with brackets, a full stop, or the option's text behind
        ("C", COUNTS, "C"),
        ("c", COUNTS, "C"),
        ("(C)", COUNTS, "C"),
        ("(c)", COUNTS, "C"),
        ("C.", COUNTS, "C"),
        ("C)", COUNTS, "C"),
        ("(C).", COUNTS, "C"),
        ("**C**", COUNTS, "C"),
        ('"C"', COUNTS, "C"),
        ("(C) 3", COUNTS, "C"),
        ("C. 3", COUNTS, "C"),
        ("C: 3", COUNTS, "C"),
        ("C 3", COUNTS, "C"),
        ("A 4", COUNTS, "A"),
        ("A", COUNTS, "A"),
        ("A.", COUNTS, "A"),
        ("(A)", COUNTS, "A"),
        ("b) 2", COUNTS, "B"),
        ("C, because there are several", COUNTS, "C"),
        ("(A) The dog is on the left side, not on the right.", SPATIAL, "A"),
        # the text alone
        ("3", COUNTS, "C"),
        ("3.", COUNTS, "C"),
        ("There are 3 dogs in the image.", COUNTS, "C"),
        ("Three", COUNTS, "C"),
        ("There are three dogs.", COUNTS, "C"),
        ("left", SPATIAL, "A"),
        ("The chair is to the right of the table.", SPATIAL, "B"),
        ("The suitcase is on the book.", MMSTAR, "A"),
        ("the suitcase is beneath the cat", MMSTAR, "B"),
        ("Hepatitis B", MMSTAR, "C"),
        ("It is hepatitis B.", MMSTAR, "C"),
        ("Cannot be determined", MMSTAR, "D"),
        ("(D) Cannot be determined", MMSTAR, "D"),
        # said in a sentence
        ("The answer is (B).", COUNTS, "B"),
        ("The answer is B", COUNTS, "B"),
        ("the answer is b.", COUNTS, "B"),
        ("The answer is: (B)", COUNTS, "B"),
        ("Answer: B", COUNTS, "B"),
        ("The correct option is B, 2.", COUNTS, "B"),
        ("Option B", COUNTS, "B"),
        ("option b", COUNTS, "B"),
        ("I would choose B", COUNTS, "B"),
        ("B is correct", COUNTS, "B"),
        ("A is correct", COUNTS, "A"),
        ("The answer is 2.", COUNTS, "B"),
        ("I see 4 cups, and 1 is behind, so the answer is (C).", COUNTS, "C"),
        ("I'm not sure, but I think it is B", COUNTS, "B"),
        # begins with the article "A"
        ("A dog", ANIMALS, "A"),
        ("A cat", ANIMALS, "B"),
        ("A cat is sitting there.", ANIMALS, "B"),
        ("A dog is standing there.", ["cat", "dog"], "B"),
        ("A group of two dogs", ANIMALS, "C"),
        ("A nice photo", COUNTS, None),
        ("There is a cat", ANIMALS, "B"),
        # two named
        ("A or B", COUNTS, None),
        ("(A) and (B)", COUNTS, None),
        ("A, B", COUNTS, None),
        ("a, b", COUNTS, None),
        ("a or b", COUNTS, None),
        ("Both A and C", COUNTS, None),
        ("left or right", SPATIAL, None),
        ("It could be 2 or 3.", COUNTS, None),
        ("The answer is A or B.", COUNTS, None),
        ("The answer is (A). No, the answer is (B).", COUNTS, None),
        ("A. 3", COUNTS, None),
        ("(B) left", SPATIAL, None),
        # refusals and negations
        ("I cannot tell.", COUNTS, None),
        ("I can't determine the answer from A photo.", COUNTS, None),
        ("Sorry, I can’t help with that.", COUNTS, None),
        ("I cannot tell whether it is A.", COUNTS, None),
        ("It is unclear", COUNTS, None),
        ("As an AI, I am unable to see 3 things.", COUNTS, None),
        ("None of the above", COUNTS, None),
        ("The answer is not clear", COUNTS, None),
        ("not (B)", COUNTS, None),
        ("Not A, but C", COUNTS, "C"),
        ("The answer is (B), not (A).", COUNTS, "B"),
        ("It is left, not right", SPATIAL, "A"),
        ("It is not left but right", SPATIAL, "B"),
        ("N/A", COUNTS, None),
        ("I am not able to choose between A, B, C and D", COUNTS, None),
        ("The dog is not left", SPATIAL, None),
        ("It isn't on the left.", SPATIAL, None),
        # echoed options and question
        ("(A) 4 (B) 2 (C) 3 (D) 1\nAnswer: (B)", COUNTS, "B"),
        ("(A) 4\n(B) 2\n(C) 3\n(D) 1\n(B)", COUNTS, "B"),
        ("A: 4, B: 2, C: 3, D: 1. C", COUNTS, "C"),
        ("Options: A. 4 B. 2 C. 3 D. 1 The answer is 2", COUNTS, "B"),
        ("(A) left (B) right", SPATIAL, None),
        ("The options are (A) left and (B) right. I choose (B).", SPATIAL, "B"),
        ("a) left b) right", SPATIAL, None),
        ("Where is the dog? (A) left (B) right (B) right", SPATIAL, "B"),
        ("Is it left or right? (A)", SPATIAL, "A"),
        # nothing
        ("", COUNTS, None),
        ("   ", COUNTS, None),
        (".", COUNTS, None),
        ("many", COUNTS, None),
        ("13", COUNTS, None),
        ("2.5", COUNTS, None),
        ("(E)", COUNTS, None),
        ("F", COUNTS, None),
        # six options
        ("E", SIX, "E"),
        ("(F)", SIX, "F"),
        ("F. 4", SIX, "F"),
        ("The answer is (E).", SIX, "E"),
        ("0", SIX, "B"),
        ("4", SIX, "F"),
        ("(A) 5 (B) 0 (C) 3 (D) 1 (E) 2 (F) 4 The answer is E", SIX, "E"),
        # options that carry their letters, and options that are letters
        ("left", ["(A) left", "(B) right"], "A"),
        ("B", ["A", "B", "C", "D"], "B"),
        # a bare letter is the label, also where options are letters themselves
        ("A", ["d", "b", "c", "a"], "A"),
        ("a.", ["d", "b", "c", "a"], "A"),
        ("(D)", ["d", "b", "c", "a"], "D"),
        ("The answer is D", ["d", "b", "c", "a"], "D"),
        ("D. a", ["d", "b", "c", "a"], "D"),
        ("E", ["E", "F", "G", "H"], "A"),
        # numbers by their value, with their sign
        ("-3", ["2", "3", "4", "5"], None),
        ("It is -3.", ["2", "3", "4", "5"], None),
        ("−3", ["2", "3", "4", "5"], None),
        ("1-3", ["2", "3", "4", "5"], None),
        ("-3", ["3", "-3", "4", "5"], "B"),
        ("-3 m", ["3 m", "4 m"], None),
        ("3.0", ["2", "3", "4", "5"], "B"),
        ("There are 3.0 of them", ["2", "3", "4", "5"], "B"),
        ("3.05", ["2", "3", "4", "5"], None),
        ("2.50", ["2", "2.5", "5", "50"], "B"),
        ("1,000", ["10", "100", "1000", "1"], "C"),
        ("about 1000 people", ["10", "100", "1,000", "1"], "C"),
        ("3.0", ["3", "3.0", "3.00", "4"], "B"),
        # boxes, tags and reasoning
        (r"\boxed{b}", COUNTS, "B"),
        (r"The result is $\boxed{\text{B}}$.", COUNTS, "B"),
        (r"\boxed{2}", COUNTS, "B"),
        (r"A or C? \boxed{B}", COUNTS, "B"),
        (r"\boxed{A} \boxed{B}", COUNTS, None),
        ("<answer> b </answer>", COUNTS, "B"),
        ("<think>A or C?</think><answer>B", COUNTS, "B"),
        ("<think>It may be A.</think> B", COUNTS, "B"),
        ('{"answer": "B"}', COUNTS, "B"),
        # Chinese, and full-width signs
        ("答案是B", COUNTS, "B"),
        ("答案：（B）", COUNTS, "B"),
        ("正确答案为B。", COUNTS, "B"),
        ("选B。", COUNTS, "B"),
        ("我选择B，因为A和C太暗", COUNTS, "B"),
        ("Ｂ", COUNTS, "B"),
        ("不选B", COUNTS, None),
        ("不是A，是B", COUNTS, "B"),
        ("我不知道，也许是B", COUNTS, None),
        ("A和B", COUNTS, None),
        # reasons and rejected options
        ("The answer is (B) because A and C are too dark.", COUNTS, "B"),
        ("B, because A and C are too dark", COUNTS, "B"),
        ("Because A is too dark, the answer is B", COUNTS, "B"),
        ("A is wrong, so B", COUNTS, "B"),
        ("A and C are wrong, so B", COUNTS, "B"),
        ("(A), (C) and (D) are incorrect. (B)", COUNTS, "B"),
        ("A isn't right, B is", COUNTS, "B"),
        ("A is clearly wrong.", COUNTS, None),
        ("A cannot be right, B is", COUNTS, "B"),
        ("B not A", COUNTS, "B"),
        ("Option b", COUNTS, "B"),
        ("left is wrong, so right", SPATIAL, "B"),
        ("Both a and b", COUNTS, None),
        ("Either a or b", COUNTS, None),
        # only the letters are known
        ("(C) something", ["", "", "", ""], "C"),
        ("something", ["", "", "", ""], None),
    ],
)
def test_letters(response, options, expected):
    for benchmark in ("cv_bench", "mmstar"):
        assert parse_answer(benchmark, response, options) == expected


@pytest.mark.parametrize(
    ("response", "options", "expected"),
    [
        ("(a)", ["Open", "Closed"], "(a)"),
        ("b", ["Open", "Closed"], "(b)"),
        ("B", ["Open", "Closed"], "(b)"),
        ("(b) Closed", ["Open", "Closed"], "(b)"),
        ("Closed.", ["Open", "Closed"], "(b)"),
        ("Standing", ["Standing", "Sitting"], "(a)"),
        ("The elephant's tusks are long", ["Short", "Long"], "(b)"),
        ("A dog is sitting", ["Standing", "Sitting"], "(b)"),
        ("(a) Open (b) Closed\n(b)", ["Open", "Closed"], "(b)"),
        ("(a) Open (b) Closed", ["Open", "Closed"], None),
        ("No", ["Yes", "No"], "(b)"),
        ("There is no dog", ["Yes", "No"], "(b)"),
        ("(c)", ["Yes", "No"], None),
        ("I am not sure", ["Yes", "No"], None),
        ("Both a and b", ["Open", "Closed"], None),
        ("Either a or b", ["Open", "Closed"], None),
        ("either (a) or (b)", ["Open", "Closed"], None),
        ("between a and b", ["Open", "Closed"], None),
        ("Both (a) and (b) are open", ["Open", "Closed"], None),
        (r"\boxed{b}", ["Open", "Closed"], "(b)"),
    ],
)
def test_mmvp_letters_are_lower_case_in_brackets(response, options, expected):
    assert parse_answer("mmvp", response, options) == expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("Yes", "yes"),
        ("yes.", "yes"),
        ("YES!", "yes"),
        ("**Yes**", "yes"),
        ("No", "no"),
        ("No, there is not.", "no"),
        ("Yes, there is a dog on the left.", "yes"),
        ("Yes. It is not hidden.", "yes"),
        ("The answer is yes.", "yes"),
        ("Answer: No", "no"),
        ("There is no dog", "no"),
        ("There is no dog in the image.", "no"),
        ("There isn't a dog.", "no"),
        ("There is not a dog.", "no"),
        ("The dog is not in the image", "no"),
        ("There is a dog in the image.", "yes"),
        ("I would say yes", "yes"),
        ("Incorrect", "no"),
        ("That is incorrect.", "no"),
        ("Not correct", "no"),
        ("not incorrect", "yes"),
        ("That isn't wrong.", "yes"),
        ("Not false", "yes"),
        ("isn't true", "no"),
        ("No.1", None),
        ("No. 1", None),
        ("No. There is 1 dog", "no"),
        ("No.", "no"),
        (r"\boxed{Yes}", "yes"),
        ("<answer>no</answer>", "no"),
        ("False", "no"),
        ("Correct", "yes"),
        ("True.", "yes"),
        ("Not sure", None),
        ("I am not sure.", None),
        ("I'm not sure, but yes", "yes"),
        ("I don't know", None),
        ("No idea", None),
        ("I cannot tell if there is a dog.", None),
        ("Sorry, I can't see the image.", None),
        ("Unclear", None),
        ("I am not able to determine", None),
        ("It cannot be determined", None),
        ("Nope", "no"),
        ("Yep, there is", "yes"),
        ("No dogs are visible.", "no"),
        ("no dog, but a cat", "no"),
        ("Yes and no", None),
        ("yes or no", None),
        ("Yes/No", None),
        ("Yes. No.", None),
        ("Is there a dog in the image? Please answer yes or no. No", "no"),
        ("Is there no dog? Yes", "yes"),
        ("", None),
        ("dog", None),
        ("maybe", None),
        ("North", None),
        ("Yesterday", None),
    ],
)
def test_yes_or_no(response, expected):
    for benchmark in ("pope_random", "mme"):
        assert parse_answer(benchmark, response, ["yes", "no"]) == expected
        assert parse_answer(benchmark, response) == expected


@pytest.mark.parametrize(
    ("benchmark", "response", "options", "expected"),
    [
        ("whats_up_one", "Left", ONE, "left"),
        ("whats_up_one", "left.", ONE, "left"),
        ("whats_up_one", "The chair is at the bottom of the photo.", ONE, "bottom"),
        ("whats_up_one", "bottom left", ONE, None),
        ("whats_up_one", "left, right, top or bottom", ONE, None),
        ("whats_up_one", "Answer with left, right, top or bottom. Top", ONE, "top"),
        ("whats_up_one", "Answer: right", ONE, "right"),
        ("whats_up_one", "A", ONE, None),
        ("whats_up_one", "center", ONE, None),
        ("whats_up_one", "", ONE, None),
        ("whats_up_one", "not left", ONE, None),
        ("whats_up_two", "The TV is above the couch.", TWO, "above"),
        ("whats_up_two", "Below", TWO, "below"),
        ("whats_up_two", "above or below", TWO, None),
        ("whats_up_two", "I cannot say whether it is left", TWO, None),
    ],
)
def test_words(benchmark, response, options, expected):
    assert parse_answer(benchmark, response, options) == expected


def test_unknown_benchmark_and_missing_options_are_errors():
    with pytest.raises(ValueError, match="known benchmark"):
        parse_answer("vqa", "A", ["x"])
    with pytest.raises(ValueError, match="options"):
        parse_answer("cv_bench", "A", [])


@pytest.mark.parametrize(
    ("benchmark", "text", "options", "expected"),
    [
        ("cv_bench", "(C)", COUNTS, "C"),
        ("mmstar", "d", COUNTS, "D"),
        ("cv_bench", "(E)", COUNTS, None),
        ("mmvp", "A", ["Open", "Closed"], "(a)"),
        ("mmvp", "(b)", ["Open", "Closed"], "(b)"),
        ("whats_up_one", "Bottom", ONE, "bottom"),
        ("pope_random", "Yes", [], "yes"),
        ("mme", "maybe", [], None),
        ("mme", None, [], None),
    ],
)
def test_the_data_sets_own_keys(benchmark, text, options, expected):
    assert key(benchmark, text, options) == expected
