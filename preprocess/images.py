"""Images from releases that may be damaged or malicious, as 8-bit grey or colours.

What becomes of each form that a PNG file can have:

====================================  ==========================================================
grey of 1, 2, 4 or 8 bits             grey, black 0 and white 255
grey of 16 bits                       grey, the upper 8 bits of each value
colours of 8 or 16 bits, a palette    colours, of 16 bits the upper 8
with an alpha channel or a            the same without it where all is opaque; refused where not,
transparent colour                    as what lies behind is unknown
====================================  ==========================================================
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from PIL import Image

from fairseq_csp.errors import UserError

_MOST_PIXELS = 1 << 26


def largest_file(side: int) -> int:
    """Return more bytes than a PNG file of ``side`` x ``side`` pixels can sensibly have."""
    return (1 << 16) + 16 * side * side


def read_image(
    file: BinaryIO, where: str, *, side: int | None = None, formats: tuple[str, ...] = ("PNG",)
) -> Image.Image:
    """Decode an image; nothing larger than asked for is decoded.

    Args:
        file: Its content.
        where: How to call it in a message.
        side: Pixels of a row and of a column; None: any up to 64 million in all.
        formats: Names that PIL has for the formats it may have. Of the others that PIL reads, one
            starts another program.

    Returns:
        An image of PIL's mode ``L`` (grey) or ``RGB``.

    Raises:
        UserError: it is damaged, of another format, of another size, or transparent.
    """
    try:
        image = Image.open(file, formats=formats)
        if side is not None and image.size != (side, side):
            raise UserError(
                f"{where} has {image.width} x {image.height} pixels, expected {side} x {side}"
            )
        if image.width * image.height > _MOST_PIXELS:
            raise UserError(f"{where} has {image.width} x {image.height} pixels, which is too many")
        image.load()
        image, opaque = _in_8_bits(image)
        if not opaque:
            raise UserError(f"{where} has transparent pixels, what is behind them is unknown")
    except UserError:
        raise
    except Exception as error:  # a damaged image can fail in any way
        raise UserError(
            f"{where} is not a readable {' or '.join(formats)} image ({error})"
        ) from error
    return image


def _in_8_bits(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return an image of mode ``L`` or ``RGB``, and whether all of it is opaque."""
    if image.mode.startswith("I"):  # grey of 16 bits, which PIL would clip
        values = np.asarray(image)
        opaque = not (values == image.info.get("transparency", -1)).any()
        return Image.fromarray((values >> 8).astype(np.uint8)), opaque
    opaque = True
    if image.has_transparency_data:
        image = image.convert("RGBA")
        opaque = image.getchannel("A").getextrema()[0] == 255
    return image.convert("L" if image.mode in ("1", "L") else "RGB"), opaque


def to_grey(image: Image.Image) -> np.ndarray:
    """Return uint8 (height, width): ITU-R 601 luma, as PIL has it."""
    return np.asarray(image.convert("L"))
