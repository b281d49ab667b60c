"""Images embedded in a checkpoint, so that inference needs no other files: masking region and reference."""

from contextlib import suppress
from pathlib import Path

import numpy as np

from config import Config
from data.image_io import EmbeddedImage, decode_mask_file, to_png
from inference.preprocessing import configured
from registration.register import NoReferencePartError, Registration
from runtime import provenance
from runtime.errors import UserError


def embed(config: Config, kept: dict[str, EmbeddedImage] | None = None) -> dict[str, EmbeddedImage]:
    """Images to store in a checkpoint, so that inference needs no other files: masking `region` and `reference`.

    An image that cannot be read is left out, because training does not need it; detection reports the error.

    Args:
        kept: embedded images of the training that is resumed; its training images are registered to this reference.

    Returns:
        name -> image. The region is 0 or 255.

    Raises:
        UserError: training images are registered and the reference cannot be read; no part is found in the reference.
    """
    technique, images, embedded = configured(config), {}, {}
    region = config.masking.regions.get(config.data.category)
    if technique.masking != "no" and isinstance(region, str):
        with suppress(UserError):
            images["region"] = Path(region), decode_mask_file(Path(region)).mask.astype(np.uint8) * 255
    if config.data.registration_training and kept and "reference" in kept:
        embedded["reference"] = kept["reference"]
    elif technique.registered:
        registering = Registration(config)
        try:
            registering.check()
            images["reference"] = registering.reference_path, registering.uncropped
        except NoReferencePartError:
            raise
        except UserError:
            if config.data.registration_training:
                raise
    return embedded | {
        name: EmbeddedImage(path.as_posix(), provenance.file_digest(path), to_png(image))
        for name, (path, image) in images.items()
    }
