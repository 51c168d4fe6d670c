"""The images of an explanation in a file: where their tokens lie, and pictures if they are asked for."""

import io
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, TypedDict

import torch
from torch import Tensor

from ..checks.optional import needed_for
from ..checks.schema import Natural, TensorKind, check_tensors
from ..errors import InvalidInputError
from ..text.image_patches import ImagePatches, Pixels

#: All images one after the other: `T` tokens, boxes of `K` of them, `B` bytes of pictures.
IMAGE_TENSORS = {
    "image_positions": TensorKind("T", (torch.int64,), (0, 2**31 - 1), optional=True),
    "image_boxes": TensorKind("KE", (torch.float32,), optional=True),
    "image_pictures": TensorKind("B", (torch.uint8,), optional=True),
}


class StoredImage(TypedDict):
    """What the metadata of a file have of an image: its size, and of how many tokens, boxes and bytes it is."""

    size: tuple[Pixels, Pixels]
    tokens: Natural
    boxes: Natural
    bytes: Natural


def packed_images(images: Sequence[ImagePatches], pictures: bool) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Metadata and tensors.

    Args:
        images: The images.
        pictures: Whether their pictures are kept, as PNG.
    """
    boxes = [torch.zeros(0, 4) if image.boxes is None else image.boxes for image in images]
    contents = [_png(image.picture) if pictures and image.picture is not None else b"" for image in images]
    metadata = [
        {"size": image.size, "tokens": len(image.positions), "boxes": len(box), "bytes": len(content)}
        for image, box, content in zip(images, boxes, contents)
    ]
    tensors = {"image_positions": torch.tensor([i for image in images for i in image.positions], dtype=torch.int64)}
    if (all_boxes := torch.cat(boxes)).numel():
        tensors["image_boxes"] = all_boxes
    if content := b"".join(contents):
        tensors["image_pictures"] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return metadata, tensors


def unpacked_images(metadata: Sequence[StoredImage], tensors: Mapping[str, Tensor]) -> list[ImagePatches]:
    """What `packed_images` was given.

    Raises:
        InvalidInputError: Metadata and tensors do not fit together, or a picture is none.
    """
    found = {"image_boxes": torch.zeros(0, 4), "image_pictures": torch.zeros(0, dtype=torch.uint8), **tensors}
    check_tensors(found, IMAGE_TENSORS, {"E": 4})
    pieces = {}
    for name, counted in (("image_positions", "tokens"), ("image_boxes", "boxes"), ("image_pictures", "bytes")):
        sizes = [image[counted] for image in metadata]  # type: ignore[literal-required]
        if name not in found or sum(sizes) != len(found[name]):
            raise InvalidInputError(f"`{name}` must hold {sum(sizes)} {counted}.")
        pieces[name] = [found[name][start:end] for start, end in pairwise(accumulate(sizes, initial=0))]
    return [
        ImagePatches(
            positions=positions.tolist(),
            size=(image["size"][0], image["size"][1]),
            boxes=boxes if len(boxes) else None,
            picture=_picture(content.numpy().tobytes(), image["size"]) if len(content) else None,
        )
        for image, positions, boxes, content in zip(metadata, *pieces.values())
    ]


def _png(picture: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, format="PNG")
    return content.getvalue()


def _picture(content: bytes, size: Sequence[int]) -> Any:
    with needed_for("Pictures need", "pillow"):
        from PIL import Image
    try:
        picture = Image.open(io.BytesIO(content), formats=["PNG"])
        if (picture.height, picture.width) != tuple(size):  # before anything is decoded
            raise InvalidInputError(f"a picture of size {size} has {picture.height} x {picture.width} pixels.")
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"a picture is no PNG: {error}") from error
    return picture
