"""Pictures from strangers: `decoding` makes a file's bytes pixels, of what `files` leaves of it.

`apart` does so in another process for a format that would hold up all threads.

Knows Pillow, formats and limits; knows nothing of models, folders or HTTP.
"""

from m3model.pictures.decoding import (
    CHECKED_BEFORE,
    DEFAULT_LIMITS,
    PictureLimits,
    check_header,
    cost_of_format,
    decode_picture,
    decoded_elsewhere,
)

__all__ = [
    "CHECKED_BEFORE",
    "DEFAULT_LIMITS",
    "PictureLimits",
    "check_header",
    "cost_of_format",
    "decode_picture",
    "decoded_elsewhere",
]
