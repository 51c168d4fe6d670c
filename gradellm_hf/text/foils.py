"""A text that could have been written instead: where it differs from what was written."""

from ..errors import InvalidInputError


def first_difference(written: list[int], foil_ids: list[int], foil: str) -> tuple[int, int]:
    """The first step at which the two differ, and the foil's token id there.

    Raises:
        InvalidInputError: One of them is the beginning of the other.
    """
    for step, (token_id, other) in enumerate(zip(written, foil_ids)):
        if token_id != other:
            return step, other
    raise InvalidInputError(
        f"The foil {foil!r} and what was written begin the same, as far as both go, so there is nothing to contrast. Give "
        "another foil, or the text that it is to be compared with as `target`."
    )
