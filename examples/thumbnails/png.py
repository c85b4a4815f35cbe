"""Just enough PNG for thumbnails, in the standard library: 8-bit pictures without interlacing, read, shrunk and written.

(In earnest you would use Pillow. Then this example would need it.)
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

__all__ = ["NotSupported", "Picture", "read_png", "shrink", "write_png"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Colour type → bytes a pixel: gray, RGB, palette, gray with alpha, RGB with alpha."""


class NotSupported(ValueError):
    """Not a PNG, a broken one, or one of the rarer kinds."""


class Picture(NamedTuple):
    width: int
    height: int
    channels: int
    """1: gray, 2: gray and alpha, 3: RGB, 4: RGB and alpha."""
    pixels: bytes


def read_png(data: bytes) -> Picture:
    """The picture in a PNG file's bytes. Raises :class:`NotSupported`."""
    chunks = _chunks(data)
    try:
        width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
        if depth != 8 or interlaced or colour not in _CHANNELS:
            raise NotSupported(f"depth {depth}, colour type {colour}{', interlaced' if interlaced else ''}")
        packed = zlib.decompress(chunks[b"IDAT"])
        pixels = _unfiltered(packed, width * _CHANNELS[colour], height, _CHANNELS[colour])
        if colour == 3:
            return Picture(width, height, 3, _painted(pixels, chunks[b"PLTE"]))
    except (KeyError, IndexError, struct.error, zlib.error) as error:
        raise NotSupported(f"broken: {error}") from None
    return Picture(width, height, _CHANNELS[colour], pixels)


def _chunks(data: bytes) -> dict[bytes, bytes]:
    """Chunks by name, those of the same name joined."""
    if not data.startswith(_SIGNATURE):
        raise NotSupported("not a PNG file")
    found: dict[bytes, bytes] = {}
    at = len(_SIGNATURE)
    while at + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        if zlib.crc32(name + body) != int.from_bytes(data[at + 8 + length : at + 12 + length]):
            raise NotSupported(f"chunk {name!r} is damaged")
        found[name] = found.get(name, b"") + body
        at += 12 + length
    return found


def _unfiltered(packed: bytes, stride: int, height: int, step: int) -> bytes:
    """The rows as they were before each was replaced by its difference from its neighbours."""
    whole = bytearray()
    above = bytes(stride)
    for row in range(height):
        start = row * (stride + 1)
        line = bytearray(packed[start + 1 : start + 1 + stride])
        _undo(packed[start], line, above, step)
        whole += line
        above = bytes(line)
    return bytes(whole)


def _undo(kind: int, line: bytearray, above: bytes, step: int) -> None:
    if kind == 1:
        for i in range(step, len(line)):
            line[i] = (line[i] + line[i - step]) & 255
    elif kind == 2:
        line[:] = bytes((here + up) & 255 for here, up in zip(line, above, strict=True))
    elif kind == 3:
        for i in range(len(line)):
            line[i] = (line[i] + ((line[i - step] if i >= step else 0) + above[i]) // 2) & 255
    elif kind == 4:
        for i in range(len(line)):
            left, corner = (line[i - step], above[i - step]) if i >= step else (0, 0)
            line[i] = (line[i] + _paeth(left, above[i], corner)) & 255


def _paeth(left: int, up: int, corner: int) -> int:
    """The neighbour that is nearest to left + up - corner."""
    guess = left + up - corner
    return min((left, up, corner), key=lambda near: abs(guess - near))


def _painted(indexes: bytes, palette: bytes) -> bytes:
    colours = [palette[i : i + 3] for i in range(0, len(palette), 3)]
    return b"".join(colours[index] for index in indexes)


def shrink(picture: Picture, *, longest: int) -> Picture:
    """The picture, at most ``longest`` pixels wide and high, each pixel the mean of those it stands for. A small one stays as it is."""
    width, height, channels, pixels = picture
    factor = max(width, height) / longest
    if factor <= 1:
        return picture
    columns = _spans(width, max(1, round(width / factor)))
    rows = _spans(height, max(1, round(height / factor)))
    out = bytearray()
    for top, bottom in rows:
        lines = [pixels[y * width * channels : (y + 1) * width * channels] for y in range(top, bottom)]
        for left, right in columns:
            count = (right - left) * len(lines)
            for channel in range(left * channels, left * channels + channels):
                out.append(sum(sum(line[channel : right * channels : channels]) for line in lines) // count)
    return Picture(len(columns), len(rows), channels, bytes(out))


def _spans(size: int, parts: int) -> list[tuple[int, int]]:
    """``size`` cut into ``parts`` runs of nearly the same length."""
    return [(i * size // parts, (i + 1) * size // parts) for i in range(parts)]


def write_png(picture: Picture) -> bytes:
    """The picture as a PNG file's bytes."""
    stride = picture.width * picture.channels
    rows = b"".join(b"\0" + picture.pixels[at : at + stride] for at in range(0, len(picture.pixels), stride))
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[picture.channels]
    header = struct.pack(">IIBBBBB", picture.width, picture.height, 8, colour, 0, 0, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows, 9)) + _chunk(b"IEND", b"")


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + zlib.crc32(name + body).to_bytes(4)
