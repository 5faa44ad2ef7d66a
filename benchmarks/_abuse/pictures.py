"""Pictures that nobody should send, made from a seed: good ones, and what can be done to them.

Knows formats as bytes; what is asked about them, and how, is not known here. Those that are made to
cost much are in `bombs`.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from random import Random

from PIL import Image, ImageCms

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
MIMES = ("image/png", "image/jpeg", "image/webp", "image/gif", "text/html", "application/zip", "")
PNG = b"\x89PNG\r\n\x1a\n"
EXIF = b"Exif\0\0"


def good(random: Random, kind: str = "", mode: str = "RGB", **options: object) -> bytes:
    """Return a small picture of noise."""
    width, height = random.randint(1, 90), random.randint(1, 90)
    noise = Image.frombytes("RGB", (width, height), random.randbytes(3 * width * height))
    return saved(noise.convert(mode), kind or random.choice(FORMATS), **options)


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    """Return a picture's file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, content: bytes = b"", checksum: int | None = None) -> bytes:
    """Return a chunk of a PNG."""
    crc = zlib.crc32(name + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def chunks(png: bytes) -> list[bytes]:
    """Return the chunks of a PNG."""
    found, at = [], len(PNG)
    while at < len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        found.append(png[at:end])
        at = end
    return found


def png(
    size: tuple[int, int], depth: int, colour: int, rows: bytes, *before: bytes, way: int = 0
) -> bytes:
    """Return a PNG of these rows, whatever its header says."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, way)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return PNG + chunk(b"IHDR", header) + b"".join(before) + pixels + chunk(b"IEND")


def segment(kind: int, content: bytes) -> bytes:
    """Return a segment of a JPEG."""
    return b"\xff" + bytes([kind]) + struct.pack(">H", len(content) + 2) + content


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    """Return the JPEG with these behind its first marker."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def tiff(*entries: tuple[int, int, int, bytes], order: str = ">") -> bytes:
    """Return EXIF of these tags, with room behind them."""
    lines = [struct.pack(order + "HHI", *entry[:3]) + entry[3] for entry in entries]
    start = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "I", 8)
    return start + struct.pack(order + "H", len(lines)) + b"".join(lines) + bytes(64)


def truncated(random: Random) -> bytes:
    """Return a picture whose end is missing."""
    data = good(random)
    return data[: random.randrange(len(data))]


def wrong_type(random: Random) -> bytes:
    """Return something else, or one format behind another's first bytes."""
    other = random.choice(["BMP", "TIFF", "PPM", "ICO", "PDF", "TGA", "EPS", "DDS"])
    return random.choice(
        [
            lambda: good(random, other),
            lambda: good(random)[:12] + good(random),
            lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/>',
            lambda: random.randbytes(random.randrange(200)),
            lambda: (
                random.choice([PNG, b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 "])
                + random.randbytes(random.randrange(100))
            ),
        ]
    )()


def animated(random: Random) -> bytes:
    """Return an animation whose frames differ in size, place and time."""
    size = (random.randint(1, 60), random.randint(1, 60))
    n_frames = random.randint(2, 12)
    frames = [
        Image.new("RGBA", size, tuple(random.randbytes(4)))  # type: ignore[arg-type]
        for _ in range(n_frames)
    ]
    kind = random.choice(["GIF", "WEBP", "PNG"])
    data = saved(
        frames[0], kind, save_all=True, append_images=frames[1:],
        duration=random.choice([0, 1, 65535]), loop=random.choice([0, 65535]),
        **({} if kind == "WEBP" else {"disposal": random.randrange(3)}),
    )  # fmt: skip
    return data if random.random() < 0.6 else _flipped(random, data, 2)


def cmyk(random: Random) -> bytes:
    """Return a JPEG of four colours, sometimes with a wrong word on which."""
    data = good(random, "JPEG", "CMYK", progressive=random.random() < 0.5)
    adobe = data.find(b"Adobe")
    if adobe > 0 and random.random() < 0.6:
        data = data[: adobe + 11] + bytes([random.randrange(4)]) + data[adobe + 12 :]
    return data


def sixteen_bit(random: Random) -> bytes:
    """Return a PNG of 16 bits, or of a depth that its colours cannot have."""
    width, height = random.randint(1, 40), random.randint(1, 40)
    colour = random.choice([0, 2, 3, 4, 6, 5])
    depth = random.choice([16, 16, 16, 1, 2, 4, 8, 3, 32])
    n_bytes = 1 + (width * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4, 5: 1}[colour] + 7) // 8
    rows = b"".join(
        bytes([random.randrange(5)]) + random.randbytes(n_bytes - 1) for _ in range(height)
    )
    clear = chunk(b"tRNS", random.randbytes(random.choice([0, 1, 2, 6, 300])))
    palette = chunk(b"PLTE", random.randbytes(3 * random.randint(1, 256)))
    before = [each for each in (palette, clear) if random.random() < 0.4]
    return png((width, height), depth, colour, rows, *before, way=random.randrange(3))


def exif(random: Random) -> bytes:
    """Return a picture turned in one of the ways there are, and are not."""
    kind = random.choice([3, 3, 3, 1, 2, 4, 5, 9, 12, 99])
    value = struct.pack(">HH", random.choice([*range(10), 65535]), 0)
    order = random.choice("><")
    told = tiff((0x0112, kind, random.choice([1, 1, 1, 0, 2, 2**31]), value), order=order)
    return _told(random, told)


def broken_exif(random: Random) -> bytes:
    """Return a picture with EXIF that ends early, leads nowhere, in circles or everywhere."""
    many = [
        (number, random.choice([2, 7, 5]), 2 ** random.randint(0, 31), struct.pack(">I", 8))
        for number in range(random.randint(1, 500))
    ]
    return _told(
        random,
        random.choice(
            [
                lambda: random.randbytes(random.randrange(400)),
                lambda: b"MM\0*" + random.randbytes(4),
                lambda: tiff(*many),
                lambda: tiff(*many)[: random.randrange(200)],
                lambda: tiff((0x8769, 4, 1, struct.pack(">I", 8))),
                lambda: b"II*\0\x08\0\0\0\xff\xff" + random.randbytes(60_000),
            ]
        )(),
    )


def _told(random: Random, told: bytes) -> bytes:
    kind = random.choice(["PNG", "JPEG", "JPEG", "WEBP"])
    if kind == "JPEG":
        pieces = [told[at : at + 60_000] for at in range(0, len(told), 60_000)] or [b""]
        xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b'<a tiff:Orientation="7"/>')
        more = [xmp] if random.random() < 0.3 else []
        return with_segments(
            good(random, "JPEG"), *(segment(0xE1, EXIF + piece) for piece in pieces), *more
        )
    if kind == "PNG":
        first, *rest = chunks(good(random, "PNG"))
        text = b"Raw profile type exif\0\nexif\n" + f"{len(told):8}\n{told.hex()}\n".encode()
        held = random.choice([chunk(b"eXIf", told), chunk(b"tEXt", text)])
        return PNG + first + held + b"".join(rest)
    return good(random, "WEBP", exif=told)


def icc(random: Random) -> bytes:
    """Return a picture with a colour profile, mostly a broken one."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = random.choice(
        [profile, profile[: random.randrange(200)], random.randbytes(70_000), b"",
         _flipped(random, profile, 20)]
    )  # fmt: skip
    kind = random.choice(["PNG", "JPEG", "WEBP"])
    data = good(random, kind, icc_profile=profile)
    return data if kind != "JPEG" else _flipped(random, data, random.randrange(3), 600)


def palette(random: Random) -> bytes:
    """Return a picture of a palette that is too short, too long, missing or transparent."""
    if random.random() < 0.4:
        return _flipped(random, good(random, random.choice(["GIF", "PNG"]), "P"), 3, 60)
    width, height = random.randint(1, 40), random.randint(1, 40)
    rows = b"".join(b"\0" + random.randbytes(width) for _ in range(height))
    colours = chunk(b"PLTE", random.randbytes(random.choice([0, 3, 5, 30, 768, 3000])))
    clear = chunk(b"tRNS", random.randbytes(random.choice([0, 1, 256, 999])))
    before = random.sample([colours, clear, colours], random.randrange(4))
    return png((width, height), 8, 3, rows, *before)


def zero_size(random: Random) -> bytes:
    """Return a picture that is nothing wide, or high, in every format."""
    width, height = random.choice([(0, 0), (0, 9), (9, 0)])
    jpeg = bytearray(good(random, "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", height, width)
    gif = bytearray(good(random, "GIF"))
    gif[6:10] = struct.pack("<HH", width, height)
    if random.random() < 0.5:
        frame = gif.index(b",", 13 + 3 * 2 ** ((gif[10] & 7) + 1))
        gif[frame + 5 : frame + 9] = struct.pack("<HH", width, height)
    webp = (
        b"VP8 " + struct.pack("<I", 10) + b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", width, height)
    )
    return random.choice(
        [
            png((width, height), 8, 2, b"\0"),
            bytes(jpeg),
            bytes(gif),
            b"RIFF" + struct.pack("<I", 4 + len(webp)) + b"WEBP" + webp,
        ]
    )


def strips(random: Random) -> bytes:
    """Return a picture one pixel high or wide, up to the longest side and above."""
    length = random.choice([1, 2, 335, 1000, 9999, 10_000, 10_001, 16_000])
    size = random.choice([(length, 1), (1, length)])
    return saved(Image.new("RGB", size, "red"), random.choice(FORMATS))


def polyglot(random: Random) -> bytes:
    """Return a picture that is something else too."""
    page = b"<html><script>fetch('/v1/models')</script></html>"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "x" * 1000)
    return random.choice(
        [
            lambda: good(random, "PNG") + page,
            lambda: page + good(random, "PNG"),
            lambda: good(random, "JPEG") + archive.getvalue(),
            lambda: with_segments(good(random, "JPEG"), segment(0xFE, page)),
            lambda: good(random, "GIF")[:-1] + b"!\xfe" + b"\x31" + page[:49] + b"\0;",
            lambda: b"GIF89a=1;/*" + good(random, "GIF")[11:] + b"*/",
            lambda: good(random, "PNG") + good(random, "JPEG"),
            lambda: good(random, "WEBP") + archive.getvalue(),
        ]
    )()


def bit_flips(random: Random) -> bytes:
    """Return a picture with some bits turned."""
    return _flipped(random, good(random), random.randint(1, 30))


def noise_inside(random: Random) -> bytes:
    """Return a picture of which a part was overwritten, doubled or taken out."""
    data = good(random)
    at, n = random.randrange(len(data)), random.randint(1, 60)
    middle = random.choice([random.randbytes(n), b"", data[at : at + n] * 3, b"\xff" * n, bytes(n)])
    return data[:at] + middle + data[at + n :]


def chunk_order(random: Random) -> bytes:
    """Return a PNG or JPEG whose parts are shuffled, doubled or missing."""
    if random.random() < 0.6:
        parts = chunks(good(random, "PNG", "P" if random.random() < 0.5 else "RGB"))
        start = PNG
    else:
        data = good(random, "JPEG")
        start, at, parts = data[:2], 2, []
        while data[at + 1] != 0xDA:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            parts.append(data[at:end])
            at = end
        parts.append(data[at:])
    change = random.randrange(3)
    if change == 0:
        random.shuffle(parts)
    elif change == 1:
        parts.insert(random.randrange(len(parts)), random.choice(parts))
    else:
        parts.pop(random.randrange(len(parts)))
    return start + b"".join(parts)


def _flipped(random: Random, data: bytes, n: int, first: int = 10**9) -> bytes:
    changed = bytearray(data)
    for _ in range(n if changed else 0):
        changed[random.randrange(min(first, len(changed)))] ^= 1 << random.randrange(8)
    return bytes(changed)


MUTATIONS: dict[str, Callable[[Random], bytes]] = {
    "truncated": truncated, "wrong_type": wrong_type, "animated": animated, "cmyk": cmyk,
    "sixteen_bit": sixteen_bit, "exif": exif, "broken_exif": broken_exif, "icc": icc,
    "palette": palette, "zero_size": zero_size, "strips": strips, "polyglot": polyglot,
    "bit_flips": bit_flips, "noise_inside": noise_inside, "chunk_order": chunk_order,
}  # fmt: skip
