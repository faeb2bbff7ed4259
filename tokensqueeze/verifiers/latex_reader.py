"""Math-Verify's LaTeX reader, three times as fast.

Its grammar is parsed by ANTLR, which looks at the whole context wherever a cheaper look leaves two ways open (mode LL).
The cheaper look alone (mode SLL) gives the same tree or a syntax error, so only what fails is read at the higher price.
"""

import re

from antlr4.atn.PredictionMode import PredictionMode
from latex2sympy2_extended.latex2sympy2 import PSParser, _Latex2Sympy
from latex2sympy2_extended.math_normalization import NormalizationConfig, normalize_latex
from math_verify.parser import get_last_eq, should_treat_as_complex
from sympy import Basic, MatrixBase

# Units are taken off beforehand: the ones here include "t", "c" and "s", which makes 2 of the answer 2t.
_NORMALIZATION = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")

# Math-Verify's own mending of \sqrt(3) doubles the backslash.
_ROOT_OF_BRACKETS = re.compile(r"\\?sqrt\s*\(([^()]*)\)")


class _CheapReader(_Latex2Sympy):
    def create_parser(self, latex_str: str) -> PSParser:
        parser = super().create_parser(latex_str)
        parser._interp.predictionMode = PredictionMode.SLL
        return parser


def read_latex(text: str) -> Basic | MatrixBase | str:
    """Return what Math-Verify reads in LaTeX, or the tidied text itself if that is no mathematics it knows.

    Raises `MemoryError` and `RecursionError`: what is too big to read may well be mathematics.
    """
    text = normalize_latex(_ROOT_OF_BRACKETS.sub(r"\\sqrt{\1}", text), _NORMALIZATION)
    last_equation = get_last_eq(text)
    for latex in dict.fromkeys((text, last_equation)):
        for reader in (_CheapReader, _Latex2Sympy):
            try:
                reading = reader(is_real=not should_treat_as_complex(latex)).parse(latex)
            except (MemoryError, RecursionError):
                raise
            except Exception:  # the reader raises bare `Exception` on what it can't read, and sympy what it likes
                continue
            if isinstance(reading, Basic | MatrixBase):
                return reading
    return text
