"""What a report knows of the images of a prompt: the pictures, small, and where the parts lie that tokens stand for."""

import base64
import io
from collections.abc import Iterator
from typing import Any

from ..text.readable import Readable

_LONGEST = 768  # pixels of a picture on the page
_QUALITY = 82  # of JPEG


def image_data(explanation: Readable) -> Iterator[dict[str, Any]]:
    """The images as `web/picture.js` reads them. Boxes are left, top, width and height in per cent of the picture."""
    for number, image in enumerate(explanation.images or [], start=1):
        height, width = image.size
        boxes = [] if image.boxes is None else image.boxes.tolist()
        yield {
            "name": f"image {number}",
            "first": image.extent.start,
            "last": image.extent.stop,
            "height": height,
            "width": width,
            "positions": image.positions,
            "boxes": [
                [round(100 * share, 2) for share in (x / width, y / height, (right - x) / width, (bottom - y) / height)]
                for x, y, right, bottom in boxes
            ],
            "picture": None if image.picture is None else data_url(image.picture),
        }


def data_url(picture: Any) -> str:
    """A PIL image, made small, as a JPEG in a URL."""
    small = picture.convert("RGB")
    small.thumbnail((_LONGEST, _LONGEST))
    content = io.BytesIO()
    small.save(content, format="JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
