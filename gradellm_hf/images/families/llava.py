"""LLaVA, with the vision towers of CLIP and SigLIP: one square of patches, cut out of the centre or padded."""

from ..picture import ReadPicture, framed, patched
from ..views import View


def layout(read: ReadPicture) -> list[View]:
    processor = read.settings.processor
    view = patched(framed(read), read.frame, processor.patch_size)
    classes = (processor.num_additional_image_tokens or 0) - (processor.vision_feature_select_strategy == "default")
    return [View(None, 1, classes), view] if classes > 0 else [view]
