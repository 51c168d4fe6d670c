"""What a processor was told of pictures: in its call, by its own defaults, by those of its image processor."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Settings(NamedTuple):
    """The settings of a processor, in the order in which it looks for them itself.

    Attributes:
        processor: The processor.
        given: What it was called with.
    """

    processor: Any
    given: Mapping[str, Any]

    def get(self, name: str) -> Any:
        """The value of a setting, such as `"do_resize"`; None if there is none."""
        found = (place[name] for place in self._places() if place.get(name) is not None)
        return next(found, getattr(self.processor.image_processor, name, None))

    def size(self, name: str) -> dict[str, int]:
        """A size, such as `"crop_size"`, by the names of its numbers."""
        value = self.get(name) or {}
        if isinstance(value, int):
            return {"height": value, "width": value}
        names = ("height", "width", "shortest_edge", "longest_edge")
        return {key: value[key] for key in names if key in value and value[key] is not None}

    def _places(self) -> Iterator[Mapping[str, Any]]:
        yield self.given.get("images_kwargs") or {}
        yield self.given
        for kind in type(self.processor).__mro__:
            yield vars(kind).get("images_kwargs") or {}
            before = vars(sys.modules[kind.__module__]).get(f"{kind.__name__}Kwargs")  # before Transformers 5.24
            yield getattr(before, "_defaults", {}).get("images_kwargs", {})
