"""What the BERT normaliser of `tokenizers` does to each character, as a text file that every sample reads.

Browsers, phones and C libraries each have a Unicode version of their own, and `tokenizers` several at once
(its marks are older than its lower case). So the samples use no Unicode functions of their platform: they
read this file, unicode.txt, which was found by asking `tokenizers` about every code point:

    python -m qexport.serving.bundle.unicode > serving/bundle/samples/unicode.txt

The lines, all numbers hexadecimal; # begins a comment:

    drop FIRST LAST        removed before anything else
    space FIRST LAST       white space: ends a word
    cjk FIRST LAST         a word of its own
    mark FIRST LAST        accent: removed after the decomposition
    punct FIRST LAST       a word of its own, and ends the one before
    order FIRST LAST N     combining class: neighbours of which none is 0 are sorted by it, stably
    split CODE CODES...    canonical decomposition, complete; Hangul syllables are computed
    lower FIRST LAST STEP CODES...   lower case; FIRST becomes CODES, each STEP further one code point further
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable

__all__ = ["HANGUL", "find_table"]

HANGUL = range(0xAC00, 0xAC00 + 11172)
"""Syllables, whose decomposition is arithmetic (Unicode standard, section 3.12)."""

_BETWEEN = "0"  # nothing is decomposed or lowered to a digit, and no rule takes one away


def find_table() -> str:
    """The file's text, found with the installed `tokenizers`; takes seconds."""
    import tokenizers
    from tokenizers import normalizers

    def only(**what: bool) -> Callable[[str], str]:
        off = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
        return normalizers.BertNormalizer(**{**off, **what}).normalize_str

    points = [code for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF and chr(code) != _BETWEEN]
    cleaned = _changes(points, only(clean_text=True))
    split = _changes(points, normalizers.NFD().normalize_str)
    stripped = _changes(points, only(strip_accents=True))
    spaces, punctuation = _separators(points)
    lines = [
        f"# How tokenizers {tokenizers.__version__} reads each character; qexport.serving.bundle.unicode"
    ]
    for kind, codes in (
        ("drop", [code for code, text in cleaned.items() if text == ""]),
        ("space", spaces),
        ("cjk", _changes(points, only(handle_chinese_chars=True))),
        ("mark", [code for code, text in stripped.items() if text == ""]),
        ("punct", punctuation),
    ):
        lines += [f"{kind} {first:X} {last:X}" for first, last in _ranges(codes)]
    lines += _orders()
    lines += [f"split {code:X} {_hex(text)}" for code, text in split.items() if code not in HANGUL]
    lines += _lower_lines(_changes(points, only(lowercase=True)))
    return "\n".join(lines) + "\n"


def _changes(points: list[int], normalize: Callable[[str], str]) -> dict[int, str]:
    """Code point -> what it becomes, of those that do not stay as they are."""
    text = _BETWEEN.join(map(chr, points))
    found = normalize(text).split(_BETWEEN)
    # The rule for Chinese characters puts spaces around them, which is a change too.
    return {code: new for code, new in zip(points, found, strict=True) if new != chr(code)}


def _separators(points: list[int]) -> tuple[list[int], list[int]]:
    """White space and punctuation, as BertPreTokenizer splits by them."""
    from tokenizers.pre_tokenizers import BertPreTokenizer

    text = "a" + "a".join(map(chr, points)) + "a"
    kept = bytearray(len(text))  # 1 inside a longer word, 2 a word of its own
    for _, (begin, end) in BertPreTokenizer().pre_tokenize_str(text):
        kept[begin:end] = bytes([2 if end - begin == 1 else 1]) * (end - begin)
    places = [kept[2 * index + 1] for index in range(len(points))]
    return (
        [code for code, place in zip(points, places, strict=True) if place == 0],
        [code for code, place in zip(points, places, strict=True) if place == 2],
    )


def _orders() -> list[str]:
    """The combining classes that the NFD of `tokenizers` sorts by.

    Its own are older than Python's, so a class of Python's counts only where NFD is seen to use it.
    """
    from tokenizers.normalizers import NFD

    normalize = NFD().normalize_str
    lowest, highest = "\u0334", "\u0345"  # classes 1 and 240, the ends of the scale
    found: dict[int, list[int]] = {}
    for code in range(0x300, 0x1F000):
        char = chr(code)
        number = unicodedata.combining(char)
        if number and (
            normalize(f"a{highest}{char}") == f"a{char}{highest}"
            or normalize(f"a{char}{lowest}") == f"a{lowest}{char}"
        ):
            found.setdefault(number, []).append(code)
    return [
        f"order {first:X} {last:X} {number:X}"
        for number in sorted(found)
        for first, last in _ranges(found[number])
    ]


def _lower_lines(lower: dict[int, str]) -> list[str]:
    """Runs with one distance to their lower case, in steps of 1 or 2."""
    lines: list[str] = []
    waiting = dict(lower)
    while waiting:
        first = min(waiting)
        best: list[int] = [first]
        if len(waiting[first]) == 1:
            distance = ord(waiting[first]) - first
            for step in (1, 2):
                run, code = [first], first + step
                while len(waiting.get(code, "")) == 1 and ord(waiting[code]) - code == distance:
                    run.append(code)
                    code += step
                best = max(best, run, key=len)
        step = best[1] - best[0] if len(best) > 1 else 1
        lines.append(f"lower {first:X} {best[-1]:X} {step:X} {_hex(waiting[first])}")
        for code in best:
            del waiting[code]
    return lines


def _ranges(codes: Iterable[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for code in sorted(codes):
        if found and code == found[-1][1] + 1:
            found[-1] = (found[-1][0], code)
        else:
            found.append((code, code))
    return found


def _hex(text: str) -> str:
    return " ".join(f"{ord(char):X}" for char in text)


if __name__ == "__main__":
    print(find_table(), end="")
