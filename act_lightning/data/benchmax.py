r"""BenchMAX's own words: how each of the paper's eleven languages asks, and how an answer is told from the output.

Facts taken to the letter from https://github.com/CONE-MT/BenchMAX at commit d509bfdefa43fc8cb32045c98642d709fad56e3a
(MIT), ``tasks/mgsm`` and ``tasks/gpqa``; there at most 1,024 new tokens are generated for mathematics and 2,048 for
science. Code follows its evalplus fork (https://github.com/xuuHuang/evalplus, commit
beb1ee792b6018231512ea7cdc850180fde8545c): a model without chat template completes the function, with at most 768.
Paper of the benchmark: https://arxiv.org/abs/2502.07346.

Two quirks of it are kept, for comparable numbers: Bengali answers to mathematics are looked for in English, and no
prompt of science names the form ``The answer is (B)`` that the strict pattern asks for.
"""

from __future__ import annotations

import re

LANGUAGES = ("en", "zh", "ar", "bn", "hu", "ja", "ko", "sw", "te", "th", "vi")

# What stands before the question, what stands after it, and the strict pattern.
_MATH = {
    "en": ("Question:", "Step-by-Step Answer:", r"The answer is (\-?[0-9\.\,]+)"),
    "zh": ("问题:", "逐步解答:", r"答案是 (\-?[0-9\.\,]+)。"),
    "ar": ("السؤال:", "الإجابة خطوة بخطوة:", r"الإجابة هي (\-?[0-9\.\,]+)"),
    "bn": ("প্রশ্ন:", "ধাপে ধাপে উত্তর:", r"The answer is (\-?[0-9\.\,]+)"),
    "hu": ("Kérdés:", "Válasz lépésről lépésre:", r"A válasz (\-?[0-9\.\,]+)"),
    "ja": ("問題:", "ステップごとの答え:", r"答えは(\-?[0-9\.\,]+)です。"),
    "ko": ("질문:", "단계별 답변:", r"답은 (\-?[0-9\.\,]+)입니다\."),
    "sw": ("Swali:", "Jibu la Hatua kwa Hatua:", r"Jibu ni (\-?[0-9\.\,]+)"),
    "te": ("ప్రశ్న:", "దశలవారీగా సమాధానం:", r"సమాధానం (\-?[0-9\.\,]+)"),
    "th": ("โจทย์:", "คำตอบทีละขั้นตอน:", r"คำตอบคือ (\-?[0-9\.\,]+)"),
    "vi": ("Câu hỏi:", "Câu trả lời từng bước:", r"Câu trả lời là (\-?[0-9\.\,]+)"),
}
# What stands before the question, before the options, and after them.
_SCIENCE = {
    "en": ("What is the correct answer to this question:", "Choices:", "Let's think step by step: "),
    "zh": ("这个问题的正确答案是什么:", "选项:", "我们来一步步思考一下: "),
    "ar": ("ما هي الإجابة الصحيحة لهذا السؤال: ", "الخيارات:", "لنفكر خطوة بخطوة: "),
    "bn": ("এই প্রশ্নের সঠিক উত্তর কি: ", "পছন্দ:", "আসুন ধাপে ধাপে চিন্তা করি: "),
    "hu": ("Mi a helyes válasz erre a kérdésre: ", "Választási lehetőségek:", "Gondoljuk végig lépésről lépésre: "),
    "ja": ("この質問の正しい答えは何ですか: ", "選択肢:", "ステップごとに考えてみましょう: "),
    "ko": ("이 질문에 대한 정답은 무엇입니까? ", "선택지:", "단계별로 생각해 보겠습니다: "),
    "sw": ("Je, ni jibu gani sahihi kwa swali hili: ", "Chaguo: ", "Wacha tufikirie hatua kwa hatua: "),
    "te": ("ఈ ప్రశ్నకు సరైన సమాధానం ఏమిటి: ", "ఎంపికలు:", "దశలవారీగా ఆలోచిద్దాం: "),
    "th": ("คำตอบที่ถูกต้องสำหรับคำถามนี้คืออะไร: ", "ตัวเลือก:", "มาคิดทีละขั้นตอนกัน: "),
    "vi": ("Câu trả lời đúng cho câu hỏi này là gì: ", "Các lựa chọn:", "Chúng ta hãy suy nghĩ từng bước một: "),
}


def math_question(language: str) -> str:
    r"""The user's turn of a problem of mathematics (MGSM), with ``{prompt}`` where the problem goes.

    >>> math_question("en")
    'Question: {prompt}\nStep-by-Step Answer:'
    """
    before, after, _ = _MATH[language]
    return f"{before} {{prompt}}\n{after}"


def math_pattern(language: str) -> str:
    """The pattern whose group is the answer to a problem of mathematics."""
    return _MATH[language][2]


def science_question(language: str) -> str:
    r"""The user's turn of a question of science (GPQA), with ``{prompt}`` and ``{options}``.

    >>> science_question("sw")
    'Je, ni jibu gani sahihi kwa swali hili: {prompt}\nChaguo: \n{options}\nWacha tufikirie hatua kwa hatua: '
    """
    before, options, after = _SCIENCE[language]
    return f"{before}{{prompt}}\n{options}\n{{options}}\n{after}"


def clean_option(option: str) -> str:
    """An option as BenchMAX shows it: without what stands in square brackets, double spaces made single.

    >>> clean_option(" bicyclo[2.2.1]heptane ")
    'bicycloheptane'
    """
    return re.sub(r"\[.*?\]", "", option.strip().replace(" [title]", ". ")).replace("  ", " ")
