"""Files of either kind read back."""

import os
from typing import Any

from ..checks.files import read_metadata
from ..results.explanation import FORMAT, Explanation
from ..results.output import ExplainGenerateOutput


def load_explanations(path: str | os.PathLike[str], tokenizer: Any = None) -> list[Explanation]:
    """Reads a file that `Explanation.save` or `ExplainGenerateOutput.save` wrote.

    Args:
        path: The file.
        tokenizer: For files of the latter kind: the tokenizer of the model. Without it the tokens are shown as the file
            holds them, as they are written in the vocabulary.

    Raises:
        FileNotFoundError: There is no such file.
        InvalidInputError: It is of neither kind, of a later version, or holds token ids only and no tokenizer was given.
    """
    if read_metadata(path, "Explanation.save` or `ExplainGenerateOutput.save").get("format") == FORMAT:
        return [Explanation.load(path)]
    return ExplainGenerateOutput.load(path).explanations(tokenizer)
