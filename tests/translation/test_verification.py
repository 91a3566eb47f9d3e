"""What a translation may not lose, add or leave as it was."""

from __future__ import annotations

import pytest

from act_lightning.translation.verification import broken_rules, protect

SOURCE = "Anna pays 1,200 dollars for two of $n$ books, that is 3.5 each.\nThe answer is: 7"


@pytest.mark.parametrize(
    ("translated", "issues"),
    [
        ("Anna 1,200 dollárt fizet két <k1/> könyvért, darabja 3.5.\n<k2/>", []),
        ("Anna 1200 dollárt fizet 2 <k1/> könyvért, darabja 3.5.\n<k2/>\n", []),  # "two" was a word
        ("Anna 1.200 dollárt fizet <k1/> könyvért, darabja 3,5.\n<k2/>", ["3.5 is missing", "1200 is missing"]),
        ("1,200 <k1/> 3.5 9\n<k2/>", ["the number 9 was added"]),
        ("1,200 3.5\n<k2/>", ["mark <k1/> is missing"]),
        ("1,200 <k1/> <k1/> <k3/> 3.5\n<k2/>", ["mark <k1/> stands 2 times", "mark <k3/> is not in the original"]),
        ("<k2/>\n1,200 <k1/> 3.5", ["mark <k2/> must end the last line"]),
        ("1,200 <k1/> 3.5\nA válasz: <k2/>", ["mark <k2/> must end the last line"]),
        ("  \n", ["it is empty"]),
        (protect(SOURCE, "line").text, ["it was not translated"]),
    ],
)
def test_rules(translated: str, issues: list[str]) -> None:
    found = broken_rules(protect(SOURCE, "line"), translated, "hu")
    assert all(any(issue in one for one in found) for issue in issues)
    assert bool(found) is bool(issues)


def test_words_before_a_value_are_translated() -> None:
    source = protect("Once upon a time.\nThe answer is: 7.", "value")
    assert source.kept == ("7.",)
    assert broken_rules(source, "Egyszer volt.\nA válasz: <k1/>", "hu") == []
    assert broken_rules(source, "Egyszer volt.\nA <k1/> a válasz", "hu") != []


@pytest.mark.parametrize(
    ("language", "good"),
    [
        ("ar", "كم عدد التفاح لدى آنا"),
        ("bn", "আন্নার কতগুলি আপেল আছে"),
        ("ja", "アンナはりんごをいくつ持っていますか"),
        ("ko", "안나는 사과를 몇 개 가지고 있나요"),
        ("te", "అన్నా దగ్గర ఎన్ని ఆపిల్స్ ఉన్నాయి"),
        ("th", "แอนนามีแอปเปิ้ลกี่ลูก"),
        ("zh", "安娜有多少个苹果"),
    ],
)
def test_script_of_the_language(language: str, good: str) -> None:
    source = protect("How many apples does Anna have")
    assert broken_rules(source, good, language) == []
    assert broken_rules(source, "I am sorry, but I cannot help with that", language) != []


def test_digits_of_another_script_are_another_number() -> None:
    assert broken_rules(protect("He runs for 15 minutes"), "সে ১৫ মিনিট দৌড়ায়", "bn") == ["the number 15 is missing"]
