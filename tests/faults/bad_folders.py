# SPDX-License-Identifier: Apache-2.0
"""Ways in which somebody's folder of pictures is unfit, each with the words of its refusal."""

from __future__ import annotations

import io
import os
import shutil
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Spoil = Callable[[Path], object]
SIZE = (32, 32)


def png(name: int) -> str:
    return f"val-{name:05d}.png"


def rename(folder: Path, old: str, new: str) -> None:
    (folder / new).parent.mkdir(exist_ok=True)
    (folder / old).rename(folder / new)


def picture(mode: str, kind: str = "PNG", size: tuple[int, int] = SIZE) -> bytes:
    """An encoded picture of some mode and format; size is (width, height)."""
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def raw_png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG of any header; nothing says that the rows fit it."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def put(number: int, data: bytes) -> Spoil:
    return lambda folder: (folder / png(number)).write_bytes(data)


def cut(number: int, data: bytes, end: int) -> Spoil:
    return put(number, data[: len(data) - end])


def remove(*numbers: int) -> Spoil:
    return lambda folder: [(folder / png(n)).unlink() for n in numbers]


def strangers(*names: str) -> Spoil:
    return lambda folder: [shutil.copy(folder / png(0), folder / name) for name in names]


def same(*pairs: tuple[int, int]) -> Spoil:
    return lambda folder: [shutil.copy(folder / png(a), folder / png(b)) for a, b in pairs]


def both_normal_forms(folder: Path) -> None:
    """Every file called after a word with an umlaut; one of them in both Unicode forms."""
    for path in sorted(folder.glob("*.png")):
        path.rename(folder / unicodedata.normalize("NFC", f"bild ä {path.name}"))
    first = folder / unicodedata.normalize("NFC", f"bild ä {png(0)}")
    shutil.copy(first, folder / unicodedata.normalize("NFD", first.name))


def in_two_folders(folder: Path) -> None:
    """Pictures in the folders a and b, one id in both."""
    for i, path in enumerate(sorted(folder.glob("*.png"))):
        rename(folder, path.name, f"{'ab'[i % 2]}/{path.name}")
    shutil.copy(folder / "a" / png(0), folder / "b" / png(0))


def link_out(folder: Path) -> None:
    rename(folder, png(6), "../outside.png")
    (folder / png(6)).symlink_to(folder.parent / "outside.png")


def folder_link_out(folder: Path) -> None:
    shutil.copytree(folder, folder.parent / "elsewhere")
    for path in folder.glob("*.png"):
        path.unlink()
    (folder / "inner").symlink_to(folder.parent / "elsewhere", target_is_directory=True)


def dangling(folder: Path) -> None:
    (folder / png(6)).unlink()
    (folder / png(6)).symlink_to(folder / "nowhere.png")


def fifo(folder: Path) -> None:
    (folder / png(6)).unlink()
    os.mkfifo(folder / png(6))


def folder_in_place_of_a_file(folder: Path) -> None:
    (folder / png(6)).unlink()
    (folder / png(6)).mkdir()


def emptied(folder: Path) -> None:
    for path in folder.glob("*"):
        path.unlink()
    (folder / ".hidden.png").touch()


def words_only(folder: Path) -> None:
    emptied(folder)
    (folder / "README.txt").write_text("soon")


def a_file(folder: Path) -> None:
    emptied(folder)
    shutil.rmtree(folder)
    folder.write_text("not a folder")


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


RGB_PNG = picture("RGB")
WHOLE_JPEG = picture("RGB", "JPEG")
SHORT = raw_png(32, 32, 8, 2, bytes(97 * 31))
RGB_16 = raw_png(32, 32, 16, 2, bytes(193 * 32))
GREY_16 = picture("I;16")
BOMB = raw_png(20_000, 20_000, 8, 2, bytes(999))
ABSURD = raw_png(2**31 - 1, 2**31 - 1, 8, 2, bytes(999))
FLAT = raw_png(0, 32, 8, 2, b"")
FIVE = f"{png(0)}, {png(1)}, {png(2)}, {png(3)}, {png(4)}"

#: what -> (how to spoil the folder, further arguments, words of the refusal); {folder} stands for the folder.
BAD: dict[str, tuple[Spoil, list[str], list[str]]] = {
    "missing": (remove(*range(9)), [], [f"9 of 16 images are missing: {FIVE} and 4 more", "[{folder}]"]),
    "all missing but one": (remove(*range(1, 16)), [], ["15 of 16 images are missing", "and 10 more"]),
    "extra": (
        strangers(*(f"x{i}.png" for i in range(7))), [], ["7 images belong to no label map: x0.png", "and 2 more"],
    ),
    "missing and extra": (
        lambda f: rename(f, png(3), "val-99999.png"), [],
        [f"1 of 16 images are missing: {png(3)}", "1 images belong to no label map: val-99999.png"],
    ),
    "two folders with one id": (
        in_two_folders, ["--pattern", "*/{image_id}.png"], ["1 images have several files", f"a/{png(0)} = b/{png(0)}"],
    ),
    "two normal forms of one name": (
        both_normal_forms, ["--pattern", unicodedata.normalize("NFD", "bild ä {image_id}.png")],
        ["1 images have several files", "Unicode form"],
    ),
    "other case": (
        lambda f: rename(f, png(3), "VAL-00003.PNG"), [],
        [f"1 of 16 images are missing: {png(3)}", "upper and lower case"],
    ),
    "both cases": (strangers("VAL-00003.png"), [], ["1 images belong to no label map: VAL-00003.png"]),
    "further samples": (
        lambda f: [shutil.copy(f / png(i), f / f"val-{i:05d}_{k}.png") for i in range(16) for k in range(2)],
        ["--pattern", "{image_id}_{sample}.png"], ["16 images belong to no label map", "ask for more samples a map"],
    ),
    "samples without a place": (lambda f: None, ["--pattern", "{image_id}.png", "--samples", "2"], ["need {sample}"]),
    "unknown field": (lambda f: None, ["--pattern", "{name}.png"], ["unknown field {name}", "image_id"]),
    "pattern out of the folder": (lambda f: None, ["--pattern", "../{image_id}.png"], ["leads out of its folder"]),
    "strange names": (
        lambda f: [p.rename(f / f"out{i}.png") for i, p in enumerate(sorted(f.glob("*.png")))], [],
        ["no pattern tells which picture belongs to which label map", "out0.png", "--pattern"],
    ),
    "two kinds of pictures": (
        lambda f: [(shutil.copy(p, f / f"{p.stem}_b.png"), p.rename(f / f"{p.stem}_a.png")) for p in f.glob("*.png")],
        [], ["several patterns fit", "'{image_id}_a.png' and '{image_id}_b.png'", "--pattern"],
    ),
    "wrong size": (put(3, picture("RGB", size=(16, 32))), [], ["image is 32x16, expected 32x32", png(3), "resize"]),
    "all of a wrong size": (
        lambda f: [put(i, picture("RGB", size=(64, 32)))(f) for i in range(16)], [],
        [f"16 of 16 images: image is 32x64, expected 32x32 ({FIVE} and 11 more)", "[{folder}]"],
    ),
    "grey": (put(2, picture("L")), [], ["PNG of mode L, expected RGB", png(2), "write 8-bit RGB"]),
    "grey with alpha": (put(2, picture("LA")), [], ["PNG of mode LA", png(2)]),
    "alpha": (put(2, picture("RGBA")), [], ["PNG of mode RGBA", png(2)]),
    "palette": (put(2, picture("P")), [], ["PNG of mode P,", png(2)]),
    "one bit": (put(2, picture("1")), [], ["PNG of mode 1", png(2)]),
    "16-bit grey": (put(2, GREY_16), [], ["PNG of mode I;16", png(2)]),
    "16-bit colour": (put(2, RGB_16), [], ["PNG of 16 bits a channel", png(2), "write it with 8 bits"]),
    "CMYK": (put(2, picture("CMYK", "TIFF")), [], ["invalid PNG", "another format", png(2), "write it as PNG"]),
    "CMYK JPEG": (put(2, picture("CMYK", "JPEG")), [], ["invalid PNG: the file is a JPEG", png(2)]),
    "JPEG called PNG": (put(2, WHOLE_JPEG), [], ["invalid PNG: the file is a JPEG", png(2), "write it as PNG"]),
    "JPEGs": (
        lambda f: [(p.unlink(), p.with_suffix(".jpg").write_bytes(WHOLE_JPEG)) for p in f.glob("*.png")], [],
        ["16 of 16 images: invalid PNG: the file is a JPEG", "val-00000.jpg"],
    ),
    "truncated PNG": (cut(5, RGB_PNG, 20), [], ["truncated PNG", png(5)]),
    "PNG cut in its header": (cut(5, RGB_PNG, len(RGB_PNG) - 20), [], ["truncated PNG", png(5)]),
    "PNG without its last row": (put(5, SHORT), [], ["truncated PNG: 3,007 of 3,104 bytes of pixels", png(5)]),
    "truncated JPEG": (cut(5, WHOLE_JPEG, 20), [], ["invalid PNG: the file is a JPEG", png(5)]),
    "flipped bit": (
        lambda f: (f / png(5)).write_bytes(RGB_PNG[:60] + bytes([RGB_PNG[60] ^ 1]) + RGB_PNG[61:]), [],
        ["damaged (checksum of a chunk) PNG", png(5)],
    ),
    "empty file": (put(5, b""), [], ["invalid PNG: empty file", png(5)]),
    "words": (put(5, b"not a picture"), [], ["invalid PNG: 13 bytes of another format", png(5)]),
    "bomb": (put(5, BOMB), [], ["picture of 20000x20000 is over 64 MP", png(5)]),
    "absurd header": (put(5, ABSURD), [], ["is over 64 MP", png(5)]),
    "no pixels": (put(5, FLAT), [], ["has no pixels", png(5)]),
    "several faults": (
        lambda f: [put(1, b"")(f), put(2, picture("L"))(f), put(3, picture("L"))(f)], [],
        [f"2 of 16 images: PNG of mode L, expected RGB ({png(2)}, {png(3)})",
         f"1 of 16 images: invalid PNG: empty file ({png(1)})"],
    ),
    "copied content": (
        same((0, 1), (0, 2)), [], ["2 of 16 images have the very pixels", f"{png(1)[:-4]} = {png(0)[:-4]}"],
    ),
    "link out of the folder": (link_out, [], ["an image leads out of its folder", png(6), "put the file itself there"]),
    "linked sub-folder": (folder_link_out, ["--pattern", "inner/{image_id}.png"], ["16 of 16 images", "leads out"]),
    "dangling link": (dangling, [], [f"1 of 16 images are missing: {png(6)}"]),
    "pipe": (fifo, [], [f"1 of 16 images are missing: {png(6)}"]),
    "folder in place of a file": (folder_in_place_of_a_file, [], [f"1 of 16 images are missing: {png(6)}"]),
    "empty folder": (emptied, [], ["the folder of images is empty", "[{folder}]"]),
    "no picture": (words_only, [], ["no picture in this folder", "[{folder}]"]),
    "a file": (a_file, [], ["this is a file, not a folder of images", "[{folder}]"]),
    "no folder": (gone, [], ["no such folder of images", "[{folder}]", "check the path"]),
    "line break in a name": (strangers("a\nb.png"), [], ["1 images belong to no label map: 'a\\nb.png'"]),
    "terminal codes in a name": (strangers("\x1b[2Jx.png"), [], ["'\\x1b[2Jx.png'"]),
}  # fmt: skip


def brightened(image: np.ndarray) -> np.ndarray:
    """A picture that is no copy of a photograph, but looks like it."""
    return np.clip(image.astype(int) + 9, 0, 255).astype(np.uint8)
