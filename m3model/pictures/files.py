"""A picture's file without what says nothing about its pixels, in a bounded number of steps.

Readers in Python walk comments, profiles and padding one by one and keep them: a few megabytes of
one-byte comments cost seconds and gigabytes. Here they are dropped, and a file of more parts than
pictures have is refused, before any library looks at it. Knows where parts of PNG, JPEG and GIF
begin and end; knows nothing of what they hold.
"""

from __future__ import annotations

import re

from m3model.errors import BadPicture

PNG = b"\x89PNG\r\n\x1a\n"
MOST_PARTS = 50_000  # tens of milliseconds of walking
# Each scan of a progressive JPEG passes over the whole picture, and a dozen bytes make a scan.
MOST_SCANS = 100

_PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"})
# Older programs hide the orientation in text: as hexadecimal EXIF, or as XMP, which is not
# compressed in a PNG.
_TURNING_TEXT = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0\0")

_MARKER = re.compile(rb"\xff([^\xff\0])", re.DOTALL)
_SCAN, _ALONE = 0xDA, frozenset({0x01, *range(0xD0, 0xDA)})  # markers without a length
# What applications write and a decoder looks at: colours, and (the first of each) orientation.
_COLOURS = ((0xE0, b"JFIF"), (0xEE, b"Adobe"))
_TURNS = ((0xE1, b"Exif\0\0"), (0xE1, b"http://ns.adobe.com/xap/1.0/\0"))

_BLOCK = re.compile(rb"[!,;]")  # an extension, a frame, the end; what else stands between is junk
_CONTROL = b"\xf9"


def only_pixels(data: bytes) -> bytes:
    """Return the file without what says nothing about the pixels of its first frame.

    Raises:
        BadPicture: it has more parts than a picture needs.
    """
    if data.startswith(PNG):
        return _of_png(data)
    if data.startswith(b"\xff\xd8"):
        return _of_jpeg(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _of_gif(data)
    return data


def _of_png(data: bytes) -> bytes:
    """Also because Pillow refuses a picture for its text or colour profile (over a megabyte
    unfolded, a wrong checksum), and lifting that would change its limits for the whole process.
    """
    view, kept = memoryview(data), bytearray()
    begin, start, name, n_parts = 0, len(PNG), b"", 0
    while start < len(data) and name != b"IEND":
        n_parts += 1
        if n_parts > MOST_PARTS:
            raise _too_many()
        name = data[start + 4 : start + 8]
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        wanted = name in _PIXEL_CHUNKS or data.startswith(_TURNING_TEXT, start + 8)
        # A chunk that is cut off stays, so that the file is refused as one that is.
        if not wanted and end <= len(data):
            kept += view[begin:start]
            begin = end
        start = end
    return bytes(kept + view[begin:]) if begin else data


def _of_jpeg(data: bytes) -> bytes:
    kept, at, turns = bytearray(data[:2]), 2, list(_TURNS)
    for _ in range(MOST_PARTS):
        marker = _MARKER.search(data, at)  # over padding, as decoders go
        if marker is None:
            return bytes(kept)
        kind, start, at = marker[1][0], marker.start(), marker.end()
        if kind == _SCAN:
            if data.count(marker[0], start) > MOST_SCANS:
                raise _too_many()
            return bytes(kept) + data[start:]
        if kind in _ALONE:
            continue
        content, at = at + 2, at + max(2, int.from_bytes(data[at : at + 2], "big"))
        known = [each for each in (*_COLOURS, *turns) if each[0] == kind]
        known = [each for each in known if data.startswith(each[1], content)]
        if 0xC0 <= kind <= 0xDF or known:  # tables and sizes
            kept += data[start:at]
        turns = [each for each in turns if each not in known]
    raise _too_many()


def _of_gif(data: bytes) -> bytes:
    palette = 3 << (data[10] & 7) + 1 if len(data) > 10 and data[10] & 0x80 else 0
    at, n_parts = 13 + palette, 0
    kept = bytearray(data[:at])
    while (block := _BLOCK.search(data, at)) and block[0] == b"!":
        start, at = block.start(), block.end() + 1
        while (length := data[at : at + 1]) not in (b"", b"\0"):
            at += 1 + length[0]
            n_parts += 1
        at += 1
        n_parts += 1
        if n_parts > MOST_PARTS:
            raise _too_many()
        if data[start + 1 : start + 2] == _CONTROL:  # its transparent colour
            kept += data[start:at]
    return bytes(kept) + data[block.start() if block else len(data) :]


def _too_many() -> BadPicture:
    return BadPicture(
        "The picture's file has more parts than a picture needs. Save it again as PNG, JPEG, WebP "
        "or GIF."
    )
