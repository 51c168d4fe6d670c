"""The prompts of a job in the order of their lengths, cut into batches."""

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from typing import Any

from ..checks.arguments import whole_number
from ..errors import InvalidInputError
from ..jobs.manifest import fingerprint
from ..jobs.prompts import Prompt, PromptReader
from ..text.encoding import TEMPLATE_OPTIONS, encode_prompt, text_tokenizer


class SortedPrompts:
    """Prompts in the order of their lengths, the longest first. A place is a position in that order.

    Attributes:
        fingerprint: A hash over all prompts, in the order of the input.

    Args:
        tokenizer: The model's, or its processor.
        prompts: The prompts.
        batch_size: At most so many prompts are explained together.
        batch_tokens: At most so many tokens, padding included, unless a single prompt has more. None: any number.
        generate_kwargs: For `GradELLM.explain`; what is for the template of chats is read.

    Raises:
        InvalidInputError: Not a single prompt can be read.
    """

    def __init__(
        self,
        tokenizer: Any,
        prompts: PromptReader,
        batch_size: int,
        batch_tokens: int | None,
        generate_kwargs: Mapping[str, Any],
    ):
        self._prompts, self._batch_size, self._batch_tokens = prompts, batch_size, batch_tokens
        self._first_error: Exception | None = None
        tokenizer = text_tokenizer(tokenizer)
        template = {name: generate_kwargs[name] for name in TEMPLATE_OPTIONS if generate_kwargs.get(name) is not None}
        digest, lengths = hashlib.sha256(), array("Q")
        for index in range(len(prompts)):
            record: Any = None
            token_ids: list[int] = []
            try:
                record = prompts[index]
                token_ids = encode_prompt(tokenizer, record.content, template)[2]
            except Exception as error:  # recorded when its turn comes
                self._first_error = self._first_error or error
            lengths.append(len(token_ids))
            digest.update(fingerprint([record, token_ids]).encode())
        self.fingerprint = digest.hexdigest()[:32]
        self._lengths = lengths
        self._order = array("Q", sorted(range(len(prompts)), key=lambda index: -lengths[index]))

    def __len__(self) -> int:
        return len(self._order)

    def check_readable(self) -> None:
        """Raises InvalidInputError if not a single prompt can be read."""
        if not any(self._lengths):
            raise InvalidInputError(
                f"No prompt can be read; what is wrong with the first one: {self._first_error}"
            ) from self._first_error

    def index(self, place: int) -> int:
        """The position in the input of the prompt at a place."""
        return self._order[place]

    def prompt(self, place: int) -> Prompt:
        """The prompt at a place. Raises InvalidInputError if there is none in its record."""
        return self._prompts[self._order[place]]

    def id(self, place: int) -> Any:
        """The `id` of the record at a place, also if it holds no prompt."""
        return self._prompts.id(self._order[place])

    def batches(self, places: range) -> Iterator[range]:
        """These places, cut into batches. The first prompt of each is its longest."""
        start = places.start
        while start < places.stop:
            size = self._batch_size
            if self._batch_tokens is not None:
                size = max(1, min(size, self._batch_tokens // max(1, self._lengths[self._order[start]])))
            stop = min(start + size, places.stop)
            yield range(start, stop)
            start = stop


def checked_sizes(batch_size: Any, batch_tokens: Any) -> tuple[int, int | None]:
    """`batch_size` and `batch_tokens` as numbers.

    Raises:
        InvalidInputError: One is no number of at least 1.
    """
    if batch_tokens is not None:
        batch_tokens = whole_number("batch_tokens", batch_tokens, 1, none="any number")
    return whole_number("batch_size", batch_size, 1), batch_tokens
