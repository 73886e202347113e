"""PNG images of a known size, from releases that may be damaged or malicious."""

from __future__ import annotations

from typing import BinaryIO

from PIL import Image

from fairseq_csp.errors import UserError


def read_png(file: BinaryIO, side: int, where: str) -> Image.Image:
    """Decode an image of ``side`` x ``side`` pixels; nothing larger is decoded.

    Args:
        file: Its content.
        side: Pixels of a row and of a column.
        where: How to call it in a message.

    Raises:
        UserError: it is damaged, of another format, or of another size.
    """
    try:
        # of the other formats that PIL reads, one starts another program
        image = Image.open(file, formats=["PNG"])
        if image.size != (side, side):
            raise UserError(
                f"{where} has {image.width} x {image.height} pixels, expected {side} x {side}"
            )
        image.load()
    except UserError:
        raise
    except Exception as error:  # a damaged image can fail in any way
        raise UserError(f"{where} is not a readable PNG image ({error})") from error
    return image
