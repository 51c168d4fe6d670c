"""Where words, sentences and paragraphs begin in a text. Every character is in one of them, and no language is named.

Splitters that one can install need the language of a text, or give sentences without their places in it, or (pysbd) have
had no release since 2021. These expressions read all scripts at once, in linear time.
"""

from collections.abc import Callable
from typing import Any

import regex

_LETTERS = r"[[\w\p{M}\u200c]--\p{Han}]"
_WORD = regex.compile(
    rf"""
    (?: [^\S\r\n]*+ [\r\n]+ )+
    | [^\S\r\n]*+ (?:
        \p{{Han}}\p{{M}}*
        | {_LETTERS}+ (?: (?: ['\u2019\u200d] | (?<=\p{{Nd}})[.,](?=\p{{Nd}}) ) {_LETTERS}+ )*
        | [\p{{P}}[\p{{S}}&&\p{{ASCII}}]]+ \p{{M}}*
        | (?!\s)\X
    )
    | \s+
    """,
    regex.VERBOSE | regex.VERSION1,
)
#: Before a name or a number, so that a capital letter or a digit after them says nothing. Others are known by the small letter.
_ABBREVIATIONS = (
    "Dr Mr Mrs Ms Prof Rev Hon Gen Col Sgt Capt Lt St Mt Sen Rep Gov Jr Sr vs cf Nos Nr Fig Figs Eq Sec Ch Vol pp ed eds "
    "approx ca al e.g i.e z.B d.h bzw Hr Fr Abs Art Mme Mlle Sra Jan Feb Apr Aug Sept Oct Nov Dec"
).replace(".", r"\.")
_NO_STOP = rf"""
    (?: (?<= (?<![\w.]) (?: {"|".join(_ABBREVIATIONS.split())} ) )  # Dr. Smith, e.g. Rome
      | (?<= (?<![\w]) \p{{Lu}} (?: \. \p{{Lu}} )*+ ) (?= \.\ ++[\p{{Lu}}] )  # J. R. Smith
      | (?<= (?<!\w) No ) (?= \.\ \p{{Nd}} )  # No. 5
      | (?<= (?: ^ | [\r\n] ) [^\S\r\n]*+ \p{{Nd}}{{1,3}} )  # 1. the first of a list
      | (?= \.\ ++\p{{Ll}} )  # etc. and others
    )
"""
_CLOSING = r"""["'\p{Pe}\p{Pf}]*+"""
_FULL_STOPS = r"[\u3002\uff01\uff1f\uff61\u061f\u06d4\u0964\u0965]"  # Chinese and Japanese, Arabic and Urdu, Hindi
_STOP = rf"(?: (?<![.!?…]) (?!{_NO_STOP}\.(?![.!?…])) [.!?…]++ {_CLOSING} (?=\s|\Z) | {_FULL_STOPS}++ {_CLOSING} )"
_LINE_END = r"(?: (?<![^\S\r\n])[^\S\r\n]*+ [\r\n]+ )"  # runs are tried from their beginning only: linear time
_SENTENCE = regex.compile(
    rf"(?: .*? (?: {_STOP} {_LINE_END}* | {_LINE_END}+ ) | .+ )", regex.VERBOSE | regex.VERSION1 | regex.DOTALL
)
_BLANK_LINE = r"(?: \r?\n (?: [^\S\r\n]* \r?\n )+ )"
_PARAGRAPH = regex.compile(rf"(?: .*? {_BLANK_LINE} | .+ )", regex.VERBOSE | regex.VERSION1 | regex.DOTALL)


def _begins(expression: Any) -> Callable[[str], Any]:
    return lambda text: {match.start() for match in expression.finditer(text)}


#: By level, what finds the characters at which a unit begins.
BEGINS: dict[str, Callable[[str], Any]] = {
    "token": lambda text: range(len(text)),
    "word": _begins(_WORD),
    "sentence": _begins(_SENTENCE),
    "paragraph": _begins(_PARAGRAPH),
    "message": lambda text: {0},
}
