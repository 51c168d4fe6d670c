"""`ImagePatches`: the tokens of one image in a prompt, and where on the picture they lie."""

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from ..checks.schema import Natural
from ..errors import InvalidInputError

Pixels = Annotated[int, range(1, 2**16)]


@dataclass(frozen=True, eq=False)
class ImagePatches:
    """One image of a prompt: `T` tokens, and the part of the picture that each of them stands for.

    Attributes:
        positions: `T` positions in the prompt, in order: indices of `Explanation.tokens`.
        size: Height and width of the picture as it was given, in pixels.
        boxes: `[T, 4]`, float32: left, top, right and bottom of each token's part, in pixels of the picture. Resizing,
            cropping, padding and tiling are undone. Parts may overlap: tiles lie above a small version of the whole picture.
            A token that stands for no part (the end of a row, padding) has zeros. None if it is not known where they are.
        picture: The picture, as a PIL image; None if it is not kept.

    Examples:
        >>> from gradellm_hf.images import ImagePatches
        >>> left_and_right = torch.tensor([[0, 0, 32, 48], [32, 0, 64, 48]])
        >>> image = ImagePatches([4, 5], (48, 64), left_and_right)
        >>> image.spread(torch.tensor([1.0, 0.0])).shape  # [H, W]
        torch.Size([48, 64])
    """

    positions: list[Natural]
    size: tuple[Pixels, Pixels]
    boxes: Tensor | None = None
    picture: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.boxes is not None:
            object.__setattr__(self, "boxes", torch.as_tensor(self.boxes, dtype=torch.float32))

    @property
    def extent(self) -> range:
        """All positions from the first token to the last, with the markers between them."""
        return range(self.positions[0], self.positions[-1] + 1)

    def spread(self, scores: Tensor) -> Tensor:
        """Scores of the tokens, `[T]`, spread over their pixels.

        A token's score is divided equally among the pixels of its part, by area where a pixel is cut. Where parts overlap, what
        they give to a pixel is added up. So the sum over all pixels is that of the tokens that have any.

        Args:
            scores: `[T]`.

        Returns:
            `[H, W]`, float32.

        Raises:
            InvalidInputError: It is not known where the tokens lie, or there is not one score for each.

        Examples:
            >>> from gradellm_hf.images import ImagePatches
            >>> image = ImagePatches([4, 5], (1, 4), torch.tensor([[0, 0, 2, 1], [0, 0, 4, 1]]))
            >>> image.spread(torch.tensor([1.0, 2.0]))
            tensor([[1.0000, 1.0000, 0.5000, 0.5000]])
        """
        if self.boxes is None:
            raise InvalidInputError(
                "It is not known which part of the picture each token stands for: the processor is of a family whose layout "
                "`gradellm_hf.images` does not know, or the tokens were made into larger units."
            )
        if scores.shape != (len(self.positions),):
            raise InvalidInputError(f"`scores` must have shape [T] = [{len(self.positions)}], got {list(scores.shape)}.")
        left, top, right, bottom = self.boxes.double().unbind(-1)
        height, width = self.size
        density = scores.double() / ((right - left) * (bottom - top)).clamp_min(1e-12)
        density = density.masked_fill((right <= left) | (bottom <= top), 0)
        return ((_covered(top, bottom, height) * density[:, None]).T @ _covered(left, right, width)).float()


def _covered(start: Tensor, end: Tensor, length: int) -> Tensor:
    """How much of each of `length` pixels in a row lies between start and end, `[T, length]`."""
    pixel = torch.arange(length, dtype=start.dtype)
    return (torch.minimum(end[:, None], pixel + 1) - torch.maximum(start[:, None], pixel)).clamp_min(0)
