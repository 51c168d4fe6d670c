"""What readers get of the images of a prompt: heatmaps over the pictures."""

import os
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .image_heatmaps import image_of, spread_scores

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Pictured:
    """The methods of an `Explanation` that are about the images of its prompt."""

    def image_heatmap(self: Any, image: int = 0, part: Any = None) -> Tensor:
        """How much each pixel of a picture contributed to the answer, or to a part of it.

        The score of a token that stands for a part of the picture, summed over the generated tokens, is divided equally among
        the pixels of that part. Where parts overlap (tiles, and a small version of the whole picture) a pixel has the sum. So
        all pixels add up to the score of the image, as `attributions` has it, without tokens that stand for no pixel (the ends
        of rows, padding). Its share beside texts is in `sources`.

        Args:
            image: Which image of the prompt; negative numbers count from the end.
            part: Of the answer: a step, a `Part` of `sources`, a text that is there once, or (start, end) in `text`. None: all
                that is explained.

        Returns:
            `[H, W]`, float32: of the size of the picture as it was given.

        Raises:
            InvalidInputError: There is no such image or part; or it is not known where the tokens lie: the units are not
                tokens, or the processor is of a family whose layout is not known.

        Examples:
            >>> import dataclasses, torch
            >>> from gradellm_hf.images import ImagePatches
            >>> halves = torch.tensor([[0, 0, 32, 48], [32, 0, 64, 48]])  # as if tokens 2 and 3 were a picture
            >>> with_image = dataclasses.replace(explanation, images=[ImagePatches([2, 3], (48, 64), halves)])
            >>> with_image.image_heatmap(part=0).shape
            torch.Size([48, 64])
        """
        return spread_scores(self, image, part)

    def plot_image(
        self: Any, path: str | os.PathLike[str] | None = None, image: int = 0, part: Any = None, **options: Any
    ) -> "Figure":
        """A matplotlib figure of a picture with its heatmap, also written to `path` if given.

        Args:
            path: The file to write.
            image: As for `image_heatmap`.
            part: As for `image_heatmap`.
            **options: `title`, `cmap` and `dpi`; see `gradellm_hf.visualization.plot_picture`.

        Raises:
            MissingDependencyError: matplotlib is not installed.
            InvalidInputError: As `image_heatmap`, or an option is not usable.
            OSError: The file cannot be written.

        Examples:
            >>> import dataclasses, torch
            >>> from gradellm_hf.images import ImagePatches
            >>> halves = torch.tensor([[0, 0, 32, 48], [32, 0, 64, 48]])
            >>> with_image = dataclasses.replace(explanation, images=[ImagePatches([2, 3], (48, 64), halves)])
            >>> figure = with_image.plot_image("seen.png")
        """
        from ..visualization.plot_picture import plot_picture

        heatmap = self.image_heatmap(image, part)
        return plot_picture(heatmap, image_of(self, image).picture, path, **options)
