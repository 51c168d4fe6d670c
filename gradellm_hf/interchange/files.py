"""Reads saved explanations, of both kinds of files."""

import os
from typing import Any

from ..checks.files import read_metadata
from ..results.explanation import Explanation
from ..results.files import FORMAT
from ..results.output import ExplainGenerateOutput


def load_explanations(path: str | os.PathLike[str], tokenizer: Any = None) -> list[Explanation]:
    """Reads a file that `Explanation.save` or `ExplainGenerateOutput.save` wrote.

    Args:
        path: The file.
        tokenizer: The tokenizer of the model, for files that `ExplainGenerateOutput.save` wrote. Without it, tokens are shown
            as they are written in the vocabulary, if the file holds them.

    Raises:
        FileNotFoundError: There is no such file.
        InvalidInputError: It is of neither kind, of a later version, or holds token ids only and no tokenizer was given.

    Examples:
        >>> explanation.save("answer.safetensors")
        >>> load_explanations("answer.safetensors")
        [Explanation(4 generated tokens from 5, ...)]
    """
    if read_metadata(path, "Explanation.save` or `ExplainGenerateOutput.save").get("format") == FORMAT:
        return [Explanation.load(path)]
    return ExplainGenerateOutput.load(path).explanations(tokenizer)
