"Bad pictures (I1 to I20 number their kinds), caches and batches: what `gz_nbdev.data` promises beyond its notebook"
import gzip
import itertools
import json
import multiprocessing
import os
import shutil
import struct
import sys
import threading
import time
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from astropy.io import fits
from fastai.callback.progress import ProgressCallback
from fastai.data.block import DataBlock
from fastai.data.transforms import ColReader
from fastai.learner import Learner
from fastai.vision.data import ImageBlock
from PIL import Image, ImageFile, PngImagePlugin

from gz_nbdev import data
from gz_nbdev.data import (ArrayImages, Augment, FitsImages, FolderImages, ImageError, ParquetImages, TensorVotes, View,
                           VotesBlock, check_images, decode, galaxy_dls, galaxy_zoo_scale, image_grid, iter_batches,
                           load_pixels)
from gz_nbdev.schema import InputError, get_schema
from gz_nbdev.simulate import compose_decals

VIEW = View(32)


def galaxy(seed=0, size=64):
    "A blob on a gradient that no turn or mirror leaves as it is"
    y, x = np.mgrid[:size, :size] / size - .5
    rng = np.random.default_rng(seed)
    blob = 200 * np.exp(-((x - .1) ** 2 / .01 + (y + .2) ** 2 / .04))
    rgb = np.stack([blob, .7 * blob + 40 * (x + .5), .5 * blob + 40 * (y + .5)], -1) + rng.uniform(0, 10)
    return Image.fromarray(rgb.clip(0, 255).astype(np.uint8))


def encoded(image, format="JPEG", **kwargs):
    image.save(out := BytesIO(), format, **kwargs)
    return out.getvalue()


def chunk(kind, body): return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, chunks=b"", depth=8, colour=2):
    "A PNG header, and whatever stands behind it"
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks
            + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b""))


def folder_of(root, files):
    "A source over `files`, a dict of id to bytes"
    for id, content in files.items(): (root / f"{id}.jpg").write_bytes(content)
    return FolderImages(pd.DataFrame({"id_str": list(files), "file_loc": [f"{id}.jpg" for id in files]}), root)


@pytest.fixture
def survey(tmp_path): return folder_of(tmp_path, {f"g{i:02}": encoded(galaxy(i)) for i in range(20)})


JPEG = encoded(galaxy())


BAD = {
    "I1 empty": (b"", "empty file"),
    "I2 half a JPEG": (JPEG[:-len(JPEG) // 4], "truncated"),
    "I2 half a progressive JPEG": (encoded(galaxy(), progressive=True)[:-300], "truncated"),
    "I2 the head of a JPEG": (JPEG[:300], "cannot be decoded"),
    "I2 half a PNG": (encoded(galaxy(), "PNG")[:800], "cannot be decoded"),
    "I4 web page": (b"\xef\xbb\xbf\n <!DOCTYPE html><html>", "web page"),
    "I4 text": (b"404 not found", "not a picture"),
    "I6 32-bit whole": (encoded(Image.new("I", (64, 64), 9), "TIFF"), "32-bit pixels"),
    "I6 32-bit float": (encoded(Image.new("F", (64, 64), 9), "TIFF"), "32-bit pixels"),
    "I10 one pixel": (encoded(Image.new("RGB", (1, 1)), "PNG"), "too small: 1 x 1 px"),
    "I10 strip": (encoded(Image.new("L", (1, 10000)), "PNG"), "too small"),
    "I10 thin": (encoded(Image.new("L", (20, 100)), "PNG"), "too long and thin"),
    "I12 text bomb": (png(64, 64, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 30_000_000))), "cannot be decoded"),
    "I12 too few pixels": (png(64, 64), "cannot be decoded"),
    "I14 EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "PostScript"),
    "I14 EPS with preview": (b"\xc5\xd0\xd3\xc6" + b"\0" * 40, "PostScript"),
    "I14 PDF": (b"%PDF-1.7\n", "PDF"),
    "I14 PSD": (b"8BPS\0\1" + b"\0" * 30, "Photoshop"),
    "I14 FPX": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "FlashPix"),
    "FITS": (b"SIMPLE  =                    T", "FITS"),
    "gzip": (b"\x1f\x8b\x08" + b"\0" * 30, "gzip"),
    "PPM, allowed nowhere": (encoded(galaxy(), "PPM"), "not a picture"),
}


@pytest.mark.parametrize("content, reason", [pytest.param(*case, id=name) for name, case in BAD.items()])
def test_bad_bytes_are_set_aside_with_a_reason(tmp_path, content, reason):
    with pytest.raises(ImageError, match=reason): decode(content, VIEW)
    cache = load_pixels(folder_of(tmp_path, {"good": JPEG, "bad": content, "also": JPEG}), VIEW, progress=False)
    assert cache.ids == ["good", "also"]
    assert cache.failures["id_str"].tolist() == ["bad"] and reason in cache.failures["reason"][0]
    assert len(cache.failures["reason"][0]) < 160 and "\n" not in cache.failures["reason"][0]


def patched(content, where, packed): return content[:where] + packed + content[where + len(packed):]


def huge():
    "60,000 px on a side, says the header, in every format that can say so"
    jpeg = encoded(galaxy())
    frame = jpeg.index(b"\xff\xc0") + 5
    yield "JPEG", patched(jpeg, frame, struct.pack(">HH", 60000, 60000))
    yield "PNG", png(60000, 60000)
    yield "GIF", patched(encoded(galaxy().convert("P"), "GIF"), 6, struct.pack("<HH", 60000, 60000))
    yield "BMP", patched(encoded(galaxy(), "BMP"), 18, struct.pack("<ii", 60000, 60000))
    tiff = encoded(galaxy(), "TIFF")
    for tag in (256, 257):
        entry = tiff.index(struct.pack("<HH", tag, 4), 4)
        tiff = patched(tiff, entry + 8, struct.pack("<I", 60000))
    yield "TIFF", tiff
    yield "WEBP", webp(16383)
    yield "just above", png(data.MAX_SIDE + 1, data.MAX_SIDE + 1)


def webp(side):
    "An animation of one small frame on a canvas of `side` px"
    def u24(n): return struct.pack("<I", n)[:3]
    frame = encoded(Image.new("RGB", (20, 20)), "WEBP", lossless=True)[12:]
    body = u24(0) * 2 + u24(19) * 2 + u24(100) + b"\0" + frame
    chunks = (b"WEBPVP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + u24(side - 1) * 2
              + b"ANIM" + struct.pack("<I", 6) + b"\0" * 6 + b"ANMF" + struct.pack("<I", len(body)) + body)
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


@pytest.mark.parametrize("content", [pytest.param(content, id=name) for name, content in huge()])
def test_I11_a_huge_header_costs_no_memory(content):
    resource = pytest.importorskip("resource")
    decode(JPEG, VIEW)  # every lazy import is done
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match="too large"): decode(content, VIEW)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) * (1 if sys.platform == "darwin" else 1024) < 50e6


def test_I12_a_bomb_that_unpacks_is_bounded_by_its_header():
    zeros = chunk(b"IDAT", zlib.compress(b"\0" * 100_000_000, 9))  # 100 MB of them behind a picture of 64 px
    assert decode(png(64, 64, zeros), VIEW).shape == (3, 32, 32)


def test_I3_a_flipped_bit_is_found_by_the_hash_alone(survey, tmp_path):
    cache = load_pixels(survey, VIEW, cache_dir=tmp_path / "cache", progress=False)
    file = tmp_path / "g11.jpg"
    content = bytearray(file.read_bytes())
    content[-200] ^= 1
    file.write_bytes(content)
    assert decode(survey.read(11), VIEW).shape == (3, 32, 32)  # nothing is raised
    assert cache.verify(survey) == ["g11"]


def test_I5_the_name_says_nothing():
    expected = torch.from_numpy(np.array(galaxy())).permute(2, 0, 1)
    assert torch.equal(decode(encoded(galaxy(), "PNG"), View(64)), expected)
    for format in ("BMP", "TIFF", "WEBP"): assert decode(encoded(galaxy(), format), VIEW).shape == (3, 32, 32)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_I6_16_bits_keep_their_upper_8(format):
    grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    pixels = decode(encoded(Image.fromarray(grey), format), View(64))
    assert torch.equal(pixels, torch.from_numpy((grey >> 8).astype(np.uint8)).expand(3, 64, 64))
    assert pixels.max() == 255


def test_I6_16_bit_colour_keeps_its_upper_8():
    row = b"\0" + struct.pack(">HHH", 0x80FF, 0x40FF, 0x20FF) * 64
    pixels = decode(png(64, 64, chunk(b"IDAT", zlib.compress(row * 64)), depth=16), View(64))
    assert pixels[:, 9, 9].tolist() == [0x80, 0x40, 0x20]


@pytest.mark.parametrize("image, format, pixel", [
    (Image.new("CMYK", (64, 64), (0, 255, 255, 0)), "TIFF", [255, 0, 0]),
    (Image.new("P", (64, 64), 0), "PNG", None),
    (Image.new("LA", (64, 64), (200, 0)), "PNG", [0, 0, 0]),
    (Image.new("LA", (64, 64), (200, 255)), "PNG", [200, 200, 200]),
    (Image.new("RGBA", (64, 64), (255, 100, 50, 0)), "PNG", [0, 0, 0]),
    (Image.new("RGBA", (64, 64), (254, 100, 50, 128)), "PNG", [127, 50, 25]),
    (Image.new("L", (64, 64), 77), "JPEG", [77, 77, 77]),
    (Image.new("1", (64, 64), 1), "PNG", [255, 255, 255]),
], ids=["CMYK", "palette", "LA clear", "LA opaque", "RGBA clear", "RGBA half", "I9 grey", "one bit"])
def test_I7_I9_every_mode_has_its_rule(image, format, pixel):
    if pixel is None: pixel = image.convert("RGB").getpixel((0, 0))
    found = decode(encoded(image, format), VIEW)[:, 9, 9].tolist()
    assert np.allclose(found, pixel, atol=2)


def test_I7_a_clear_colour_of_a_palette_is_black():
    palette = Image.new("P", (64, 64), 3)
    palette.putpalette([255] * 768)
    assert decode(encoded(palette, "PNG", transparency=3), VIEW).max() == 0


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_I8_a_turn_in_exif_is_carried_out(orientation, format):
    turns = {2: Image.FLIP_LEFT_RIGHT, 3: Image.ROTATE_180, 4: Image.FLIP_TOP_BOTTOM, 5: Image.TRANSPOSE,
             6: Image.ROTATE_270, 7: Image.TRANSVERSE, 8: Image.ROTATE_90}
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = encoded(galaxy(), format, exif=exif)
    plain = Image.open(BytesIO(encoded(galaxy(), format))).convert("RGB")
    turned = plain.transpose(turns[orientation]) if orientation in turns else plain
    expected = torch.from_numpy(np.array(turned)).permute(2, 0, 1)
    assert torch.equal(decode(stored, View(64)), expected)
    source = SimpleNamespace(ids=["a"], read=lambda i: stored)
    _, batch = next(iter_batches(source, View(64), indices=[0]))
    assert torch.equal(batch[0], expected)  # inference sees what training sees


@pytest.mark.parametrize("exif", [True, False])   # in EXIF, or in XMP, where Pillow looks too
@pytest.mark.parametrize("orientation", [1, 6])
def test_I8_where_a_turn_may_be_noted(exif, orientation):
    notes = Image.Exif()
    notes[0x0112] = orientation
    xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="{orientation}"/>'.encode()
    stored = encoded(galaxy(), "JPEG", **(dict(exif=notes) if exif else dict(xmp=xmp)))
    plain = Image.open(BytesIO(encoded(galaxy(), "JPEG"))).convert("RGB")
    shown = plain.transpose(Image.ROTATE_270) if orientation == 6 else plain
    assert np.array_equal(data._pixels(stored, 64), np.asarray(shown))
    assert (data._plain_size(stored) is None) == (orientation == 6)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_I8_damaged_exif_is_no_crash():
    exif = b"Exif\0\0" + b"MM\0*\xff\xff\xff\xff" + b"\xff" * 12
    broken = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + JPEG[2:]
    try: assert decode(broken, VIEW).shape == (3, 32, 32)
    except ImageError as e: assert "cannot be decoded" in str(e)


@pytest.mark.parametrize("format", ["GIF", "TIFF", "MPO", "WEBP", "PNG"])
def test_I13_the_first_of_several_frames(format):
    first, second = Image.new("RGB", (64, 64), (200, 0, 0)), Image.new("RGB", (64, 64), (0, 200, 0))
    lossless = dict(lossless=True) if format == "WEBP" else {}
    pixel = decode(encoded(first, format, save_all=True, append_images=[second], **lossless), VIEW)[:, 9, 9].tolist()
    assert np.allclose(pixel, [200, 0, 0], atol=2)


@pytest.fixture
def outside(tmp_path):
    "A folder of pictures, and a secret beside it"
    (tmp_path / "root").mkdir()
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    (tmp_path / "root" / "good.jpg").write_bytes(JPEG)
    return tmp_path


def reason_of(root, file_loc):
    table = pd.DataFrame({"id_str": ["a"], "file_loc": pd.Series([file_loc], dtype=object)})
    with pytest.raises(ImageError) as e: FolderImages(table, root).read(0)
    return str(e.value)


def test_I15_nothing_outside_the_root(outside):
    root = outside / "root"
    (root / "link.jpg").symlink_to(outside / "secret.jpg")
    (root / "folder").symlink_to(outside)
    absolute = str(outside / "secret.jpg")
    for name in ("../secret.jpg", absolute, "link.jpg", "folder/secret.jpg", "good.jpg/../../secret.jpg"):
        assert "outside the root" in reason_of(root, name)
    (root / "inside.jpg").symlink_to(root / "good.jpg")
    table = pd.DataFrame({"id_str": list("abc"), "file_loc": ["inside.jpg", str(root / "good.jpg"), "x/../good.jpg"]})
    (root / "x").mkdir()
    source = FolderImages(table, root)
    assert [source.read(i) for i in range(3)] == [JPEG] * 3
    (outside / "alias").symlink_to(root)  # the root itself may be a link
    assert FolderImages(table[:1], outside / "alias").read(0) == JPEG


def test_I15_pipes_and_devices_are_never_opened(outside, monkeypatch):
    root = outside / "root"
    os.mkfifo(root / "pipe.jpg")
    assert "not a regular file" in reason_of(root, "pipe.jpg")  # and does not wait for a writer
    assert "outside the root" in reason_of(root, "/dev/zero")
    assert "not a regular file" in reason_of("/dev", "zero")
    source = FolderImages(pd.DataFrame({"id_str": ["a"], "file_loc": ["pipe.jpg"]}), root)
    with monkeypatch.context() as m, pytest.raises(ImageError, match="empty file"):
        m.setattr(data.stat, "S_ISREG", lambda mode: True)  # as if the pipe were put there after the look
        decode(source.read(0))


def test_I15_a_plain_path_costs_no_look_above_the_root(outside, monkeypatch):
    "Every part below the root is looked at, and the slower way is taken for nothing that has no link"
    (outside / "root" / "a" / "b").mkdir(parents=True)
    (outside / "root" / "a" / "b" / "c.jpg").write_bytes(JPEG)
    monkeypatch.setattr(data.os.path, "realpath", None)
    assert data._inside(str(outside / "root"), "a/b/c.jpg")[0] == str(outside / "root" / "a" / "b" / "c.jpg")
    (outside / "root" / "a" / "link").symlink_to("b")
    with pytest.raises(TypeError): data._inside(str(outside / "root"), "a/link/c.jpg")


def test_I16_missing_files_and_empty_cells(outside):
    root = outside / "root"
    (root / "dangling.jpg").symlink_to(root / "nowhere.jpg")
    for name in ("lost.jpg", "dangling.jpg", None, np.nan, ""): assert reason_of(root, name).startswith("missing file")


def test_I17_unreadable_files(outside, monkeypatch):
    root = outside / "root"
    (root / "folder.jpg").mkdir()
    assert "not a regular file" in reason_of(root, "folder.jpg")
    assert "Not a directory" in reason_of(root, "good.jpg/x.jpg")
    def denied(path, flags): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(data, "_regular", denied)
    assert reason_of(root, "good.jpg") == "cannot be read: Permission denied: 'good.jpg'"


def test_a_file_that_is_no_picture_of_a_galaxy_by_size(outside, monkeypatch):
    monkeypatch.setattr(data, "MAX_BYTES", 100)
    assert "more than 100 bytes" in reason_of(outside / "root", "good.jpg")


def test_I18_two_ids_may_share_a_file(outside):
    source = FolderImages(pd.DataFrame({"id_str": ["a", "b"], "file_loc": ["good.jpg"] * 2}), outside / "root")
    assert load_pixels(source, VIEW, progress=False).ids == ["a", "b"]
    assert any("another id" in finding.what for finding in check_images(source).findings)


NAMES = ["a b.jpg", "line\nbreak.jpg", "50%.jpg", "#1?.jpg", "galaxía-銀河-🌌.jpg", "'quote\".jpg", "x" * 251 + ".jpg",
         "<img onerror=x>.jpg", "-rf.jpg", "~root.jpg", "$HOME.jpg", " .jpg"]


def test_I19_any_name_will_do(tmp_path):
    for i, name in enumerate(NAMES): (tmp_path / name).write_bytes(encoded(galaxy(i)))
    table = pd.DataFrame({"id_str": NAMES, "file_loc": NAMES})
    source = FolderImages(table, tmp_path)
    cache = load_pixels(source, VIEW, cache_dir=tmp_path / "cache", progress=False)
    assert cache.ids == NAMES and not len(cache.failures)
    assert load_pixels(source, VIEW, cache_dir=tmp_path / "cache", progress=False).ids == NAMES
    image_grid(cache.pixels, cache.ids).canvas.draw()  # no name is taken for mathematics


def test_I19_names_that_no_file_can_have(tmp_path):
    assert "cannot be read" in reason_of(tmp_path, "x" * 300 + ".jpg")
    assert "cannot be read" in reason_of(tmp_path, "nul\0.jpg")
    assert "missing file" in reason_of(tmp_path, b"\xff\xfe.jpg".decode("utf-8", "surrogateescape"))


def test_I20_constant_and_burnt_out_are_used_and_said(tmp_path):
    flat, burnt = Image.new("RGB", (64, 64), (20, 20, 20)), galaxy()
    burnt.paste((255, 255, 255), (0, 0, 64, 32))
    source = folder_of(tmp_path, {"flat": encoded(flat, "PNG"), "burnt": encoded(burnt, "PNG"), "good": JPEG})
    assert len(load_pixels(source, VIEW, progress=False)) == 3
    report = check_images(source)
    said = {finding.what: finding for finding in report.findings}
    assert said["1 constant"].examples == ("flat",) and said["1 white over more than a fifth"].examples == ("burnt",)
    assert report.ok and not report.warnings


def test_the_report_names_all_that_is_odd(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {f"g{i}": encoded(galaxy(i)) for i in range(4)} | {
        "grey": encoded(galaxy(5).convert("L"), "PNG"), "clear": encoded(galaxy(6).convert("RGBA"), "PNG"),
        "oblong": encoded(galaxy(7).crop((0, 0, 64, 40))), "turned": encoded(galaxy(8), exif=exif), "page": b"<html>"}
    source = folder_of(tmp_path, files)
    (tmp_path / "g3.jpg").unlink()
    report = check_images(source)
    whats = " ".join(finding.what for finding in report.findings)
    for what in ("7 of 9", "1 missing", "1 unreadable", "1 of other size", "1 not square", "2 not plain", "1 turned"):
        assert what in whats
    assert [f.severity for f in report.findings if "missing" in f.what or "unreadable" in f.what] == ["warning"] * 2
    nothing = check_images(folder_of(tmp_path, {"a": b"", "b": b"x"}))
    assert not nothing.ok and "Is this the right root?" in str(nothing)


def test_a_sample_is_chosen_by_its_seed(survey):
    seen = []
    class Spy:
        ids = survey.ids
        def __len__(self): return 20
        def read(self, i): seen.append(i); return survey.read(i)
    for seed in (0, 0, 1): check_images(Spy(), sample=5, seed=seed)
    runs = [sorted(seen[k:k + 5]) for k in (0, 5, 10)]
    assert runs[0] == runs[1] != runs[2] and len(runs[0]) == 5


def test_switches_of_pillow_do_not_matter(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(InputError, match="LOAD_TRUNCATED_IMAGES"): decode(JPEG, VIEW)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(ImageError, match="too large: 60000 x 60000"): decode(png(60000, 60000), VIEW)
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 10_000)
    assert decode(encoded(galaxy(), "PNG", pnginfo=text), VIEW).shape == (3, 32, 32)


@pytest.mark.parametrize("size, crop", [(64, 1.), (32, .5), (100, .31), (48, .9)])
def test_a_view_takes_the_central_square(size, crop):
    wide = Image.new("RGB", (300, 100))
    wide.paste((250, 250, 250), (100, 0, 200, 100))  # only the central square is white
    assert decode(encoded(wide, "PNG"), View(size, crop)).min() > 200 or crop == 1.
    assert decode(encoded(wide, "PNG"), View(size, crop))[:, size // 2, size // 2].min() == 250


@pytest.mark.parametrize("size, crop, side", [(64, 1., 300), (33, .5, 300), (100, .31, 301), (48, .9, 299),
                                              (200, .5, 300), (64, 1., 2100), (64, .97, 2101)])
def test_decode_is_the_central_square_averaged(size, crop, side):
    "As Pillow crops and averages, to one level; of a picture that Pillow keeps in several pieces too (2,100 px)"
    picture = galaxy(1, side)
    edge = round(side * (1 - crop) / 2)
    square = picture.crop((edge, edge, side - edge, side - edge))
    expected = np.asarray(square.resize((size, size), Image.BILINEAR)).transpose(2, 0, 1).astype(int)
    difference = np.abs(decode(encoded(picture, "PNG"), View(size, crop)).numpy() - expected)
    assert difference.max() <= 1 and difference.mean() < .1


@pytest.mark.parametrize("size, crop", [(128, 1.), (64, 1.), (64, .7), (32, .5)])
def test_a_jpeg_decoded_at_a_part_of_its_scale_looks_the_same(size, crop):
    stored = encoded(galaxy(2, 424), quality=90)
    full = encoded(Image.open(BytesIO(stored)), "PNG")   # every pixel of it
    difference = (decode(stored, View(size, crop)).int() - decode(full, View(size, crop)).int()).abs().float()
    assert 0 < difference.mean() < 1 and difference.max() < 12


def test_a_view_is_checked_and_travels_as_json():
    for wrong in (dict(size=4), dict(size=64.), dict(crop=0), dict(mean=(1, 2)), dict(std=(1, 1, 0))):
        with pytest.raises(InputError): View(**wrong)
    view = View(96, .5, True, [0, 1, 2], [1, 1, 1])
    assert View.from_dict(view.to_dict()) == view == View(96, .5, True, (0, 1, 2), (1, 1, 1))
    assert len({View().key, View(64).key, View(crop=.9).key, View(greyscale=True).key, View(mean=(.2,) * 3).key}) == 5
    grey = decode(JPEG, View(32, greyscale=True))
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[0], grey[2])


# Many pictures: the id stays with its pixels

def dirty(tmp_path, n=60):
    "Every fifth picture is bad, in one way or another"
    bad = [b"", b"<html>", JPEG[:300], encoded(Image.new("L", (1, 1)), "PNG")]
    return folder_of(tmp_path, {f"g{i:03}": bad[i // 5 % 4] if i % 5 == 2 else encoded(galaxy(i)) for i in range(n)})


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("cached", [False, True])
def test_every_row_is_its_own_picture_and_nothing_is_lost(tmp_path, threads, cached):
    source = dirty(tmp_path)
    cache = load_pixels(source, VIEW, tmp_path / "cache" if cached else None, threads=threads, progress=False)
    failures, batches = [], []
    batches += iter_batches(source, VIEW, batch_size=7, failures=failures, threads=threads)
    ids = sum([ids for ids, _ in batches], [])
    assert ids == cache.ids and sorted(ids + [id for id, _ in failures]) == source.ids
    assert failures == list(cache.failures.itertuples(index=False, name=None)) and len(failures) == 12
    assert [len(ids) for ids, _ in batches] == [7] * 6 + [6]
    pixels = torch.cat([pixels for _, pixels in batches])
    assert torch.equal(pixels, cache.pixels)
    for id, row in zip(ids, pixels): assert torch.equal(row, decode(source.read(source.ids.index(id)), VIEW))


def test_batches_of_some_pictures_in_any_order(tmp_path):
    source, failures = dirty(tmp_path), []
    batches = list(iter_batches(source, VIEW, 4, indices=[30, 2, 0, 59, 7, 41], failures=failures))
    assert [ids for ids, _ in batches] == [["g030", "g000", "g059", "g041"]]
    assert [id for id, _ in failures] == ["g002", "g007"]
    cache, again = load_pixels(source, VIEW, progress=False), []
    batches = list(iter_batches(cache, VIEW, 40, failures=again))
    assert sorted(sum([ids for ids, _ in batches], []) + [id for id, _ in again]) == source.ids


def test_a_reader_that_stops_stops_the_threads(survey):
    read = []
    class Spy:
        ids = [str(i) for i in range(100_000)]
        def __len__(self): return len(self.ids)
        def read(self, i): read.append(i); return JPEG
    next(iter_batches(Spy(), VIEW, batch_size=8, threads=2))
    assert len(read) < 400  # not the whole catalog


def count_decodes(monkeypatch):
    calls, real = [], data.decode
    monkeypatch.setattr(data, "decode", lambda *args: calls.append(1) or real(*args))
    return calls


def test_a_second_call_decodes_nothing(survey, tmp_path, monkeypatch):
    calls = count_decodes(monkeypatch)
    first = load_pixels(survey, VIEW, cache_dir=tmp_path / "c", progress=False)
    assert len(calls) == 20
    again = load_pixels(survey, VIEW, cache_dir=tmp_path / "c", progress=False)
    other_mean = load_pixels(survey, View(32, mean=(.5, .5, .5)), cache_dir=tmp_path / "c", progress=False)
    assert len(calls) == 20 and torch.equal(first.pixels, again.pixels) and other_mean.view.mean == (.5, .5, .5)
    again.pixels[0] = 0  # private to this process
    assert torch.equal(load_pixels(survey, VIEW, cache_dir=tmp_path / "c", progress=False).pixels, first.pixels)
    load_pixels(survey, View(40), cache_dir=tmp_path / "c", progress=False)
    assert len(calls) == 40


def test_file_times_decide_nothing_and_content_does(survey, tmp_path, monkeypatch):
    load_pixels(survey, VIEW, cache_dir=tmp_path / "c", progress=False)
    calls, file = count_decodes(monkeypatch), tmp_path / "g03.jpg"
    os.utime(file, (1, 1))
    load_pixels(survey, VIEW, cache_dir=tmp_path / "c", progress=False)
    assert len(calls) == 0
    times, content = os.stat(file), bytearray(file.read_bytes())
    content[-100] ^= 8  # another picture, as many bytes, at the same time
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    cache = load_pixels(survey, VIEW, cache_dir=tmp_path / "c", progress=False)
    assert len(calls) == 20 and cache.verify(survey) == []


def test_a_picture_that_is_mended_comes_back(survey, tmp_path):
    (tmp_path / "g05.jpg").unlink()
    assert len(load_pixels(survey, VIEW, cache_dir=tmp_path / "c", progress=False)) == 19
    (tmp_path / "g05.jpg").write_bytes(JPEG)
    assert len(load_pixels(survey, VIEW, cache_dir=tmp_path / "c", progress=False)) == 20


def manifest(folder, **changes):
    about = json.loads((folder / "cache.json").read_text())
    (folder / "cache.json").write_text(json.dumps({**about, **changes}))


def overwritten(file, where, content):
    with open(file, "r+b") as f: f.seek(where); f.write(content)


def shuffled(folder):
    index = pd.read_parquet(folder / "index.parquet")
    index[::-1].to_parquet(folder / "index.parquet", index=False)


ROW = 3 * 32 * 32
HARMS = {
    "cut": (lambda f: os.truncate(f / "pixels.u8", 5000), "has 5,000 bytes of pixels where its index counts 61,440"),
    "longer": (lambda f: os.truncate(f / "pixels.u8", 61441), "has 61,441 bytes"),
    "empty": (lambda f: os.truncate(f / "pixels.u8", 0), "has 0 bytes"),
    "no pixels": (lambda f: (f / "pixels.u8").unlink(), "cannot be read \\(FileNotFoundError"),
    "flipped": (lambda f: overwritten(f / "pixels.u8", 7 * ROW + 9, b"\x99"), "other pixels of 'g07' than were written"),
    "zeros": (lambda f: overwritten(f / "pixels.u8", 3 * ROW, bytes(ROW)), "other pixels of 'g03'"),
    "foreign pixels": (lambda f: (f / "pixels.u8").write_bytes(os.urandom(61440)), "other pixels of 'g00'"),
    "foreign index": (lambda f: (f / "index.parquet").write_bytes(b"PAR1 no more"), "cannot be read \\(ArrowInvalid"),
    "other table": (lambda f: pd.DataFrame({"a": [1]}).to_parquet(f / "index.parquet"), "cannot be read"),
    "index of another order": (shuffled, "other pixels|another list of ids"),
    "no manifest": (lambda f: (f / "cache.json").unlink(), "cannot be read \\(FileNotFoundError"),
    "manifest cut": (lambda f: os.truncate(f / "cache.json", 20), "cannot be read \\(JSONDecodeError|Unterminated"),
    "manifest too deep": (lambda f: (f / "cache.json").write_text("[" * 100_000), "cannot be read"),
    "manifest a list": (lambda f: (f / "cache.json").write_text("[1, NaN]"), "cannot be read \\(TypeError"),
    "manifest of another view": (lambda f: manifest(f, view=View(32, .5).to_dict()), "made by other rules crop=0.5"),
    "older rules": (lambda f: manifest(f, rules=1), "made by other rules"),
}


@pytest.mark.parametrize("harm, message", [pytest.param(*case, id=name) for name, case in HARMS.items()])
def test_a_damaged_cache_is_built_anew_and_it_is_said(survey, tmp_path, harm, message):
    first = load_pixels(survey, VIEW, cache_dir=tmp_path / "c", progress=False)
    pixels = first.pixels.clone()
    harm(first.folder)
    with pytest.warns(UserWarning, match=f"The pixel cache .*({message}).*built anew"):
        again = load_pixels(survey, VIEW, cache_dir=tmp_path / "c", progress=False)
    assert torch.equal(again.pixels, pixels) and again.verify(survey) == []
    with warnings.catch_warnings():  # and now nothing is wrong
        warnings.simplefilter("error")
        load_pixels(survey, VIEW, cache_dir=tmp_path / "c", progress=False)


def test_verify_names_the_galaxy_of_a_flipped_bit(survey, tmp_path):
    for row, bit in ((0, 1), (7, 128), (19, 16)):
        cache = load_pixels(survey, VIEW, cache_dir=tmp_path / str(row), progress=False)
        place, file = row * ROW + ROW - 1, cache.folder / "pixels.u8"
        overwritten(file, place, bytes([file.read_bytes()[place] ^ bit]))
        with pytest.raises(InputError, match=f"Pixels of 1 pictures .* were damaged \\('g{row:02}'\\): delete it"):
            cache.verify(survey)


def test_other_rules_of_decoding_make_another_cache(survey, tmp_path, monkeypatch):
    first = load_pixels(survey, VIEW, cache_dir=tmp_path / "c", progress=False)
    monkeypatch.setattr(data, "_RULES", data._RULES + 1)
    second = load_pixels(survey, VIEW, cache_dir=tmp_path / "c", progress=False)
    assert first.folder != second.folder and first.folder.exists()


def test_a_cache_that_can_only_be_read_is_read(survey, tmp_path, monkeypatch):
    first = load_pixels(survey, VIEW, cache_dir=tmp_path / "c", progress=False)
    def refused(path): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(data, "FileLock", refused)
    assert torch.equal(load_pixels(survey, VIEW, cache_dir=tmp_path / "c", progress=False).pixels, first.pixels)
    with pytest.raises(InputError, match="needs 96,000 bytes in .*Permission denied.*another cache_dir"):
        load_pixels(survey, View(40), cache_dir=tmp_path / "c", progress=False)


def build_slowly(root, decoded, sums):
    "What a process of its own does: count each decode, and say what came of it"
    real = data.decode
    def slow(*args):
        with decoded.get_lock(): decoded.value += 1
        time.sleep(.02)
        return real(*args)
    data.decode = slow
    ids = [f"g{i:02}" for i in range(20)]
    source = FolderImages(pd.DataFrame({"id_str": ids, "file_loc": [f"{id}.jpg" for id in ids]}), root)
    cache = load_pixels(source, VIEW, root / "c", threads=1, progress=False)
    sums.put((int(cache.pixels.sum()), len(cache)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_processes_and_a_killed_one_build_one_cache(survey, tmp_path):
    context = multiprocessing.get_context("fork")
    decoded, sums = context.Value("i", 0), context.Queue()
    victim, *others = [context.Process(target=build_slowly, args=(tmp_path, decoded, sums)) for _ in range(3)]
    victim.start()
    while decoded.value < 5: time.sleep(.005)
    victim.kill()
    victim.join()
    assert [path.name for path in (tmp_path / "c").glob("pixels*")] == []  # nothing looks finished
    decoded.value = 0
    for other in others: other.start()
    found = [sums.get(timeout=60) for _ in others]
    for other in others: other.join()
    assert set(found) == {(int(load_pixels(survey, VIEW, progress=False).pixels.sum()), 20)}
    assert decoded.value == 20  # one built, the other waited and shared
    assert not list((tmp_path / "c").glob(".*.part")) and len(list((tmp_path / "c").glob("pixels*"))) == 1


def test_a_full_disk_is_said_before_the_first_picture(survey, tmp_path, monkeypatch):
    calls = count_decodes(monkeypatch)
    monkeypatch.setattr(data.shutil, "disk_usage", lambda path: type("Usage", (), dict(free=10))())
    with pytest.raises(InputError, match="needs 61,440 bytes in .*10 bytes are free.*cache_dir=None"):
        load_pixels(survey, VIEW, tmp_path / "c", progress=False)
    assert not calls
    class Survey:  # too large for any disk, and said so before a picture is asked for
        ids = range(10**12)
        def __len__(self): return 10**12
        def fingerprint(self): return "huge"
    with pytest.raises(InputError, match="needs 49,152,000.0 GB in"):
        load_pixels(Survey(), View(128), tmp_path / "c", progress=False)


class Disk:
    "A file that is written through `take`, which may do less than it should"
    def __init__(self, take, *args, **kwargs): self.take, self.file = take, open(*args, **kwargs)
    def write(self, piece): return self.take(self.file, piece)
    def fileno(self): return self.file.fileno()
    def truncate(self, size): return self.file.truncate(size)
    def __enter__(self): return self
    def __exit__(self, *args): self.file.close()


def on_disk(monkeypatch, take):
    def opened(path, mode="r", **kwargs): return Disk(take, path, mode, **kwargs) if mode == "wb" else open(path, mode, **kwargs)
    monkeypatch.setattr(data, "open", opened, raising=False)


def test_a_disk_that_fills_up_leaves_nothing_behind(survey, tmp_path, monkeypatch):
    def full(file, piece): raise OSError(28, "No space left on device")
    on_disk(monkeypatch, full)
    with pytest.raises(InputError, match="No space left"):
        load_pixels(survey, VIEW, tmp_path / "c", progress=False)
    assert [p.name for p in (tmp_path / "c").iterdir() if not p.name.endswith(".lock")] == []


def fill_up(root, source, limit, said):
    "In a process of its own: a disk, or a quota, that takes no file larger than `limit`"
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try: load_pixels(source, VIEW, root / "c", progress=False)
    except InputError as e: said.put(str(e))
    else: said.put("nothing was wrong")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("limit", [0, 3000, 50_000])
def test_a_file_that_may_not_grow_is_an_error_and_leaves_nothing(survey, tmp_path, limit):
    context = multiprocessing.get_context("fork")
    said = context.Queue()
    process = context.Process(target=fill_up, args=(tmp_path, survey, limit, said))
    process.start()
    message = said.get(timeout=60)
    process.join()
    assert "needs 61,440 bytes in" in message and "File too large" in message and "another cache_dir" in message
    assert [p.name for p in (tmp_path / "c").iterdir() if not p.name.endswith(".lock")] == []
    assert len(load_pixels(survey, VIEW, tmp_path / "c", progress=False)) == 20  # with room it is built


def test_a_disk_that_takes_a_part_of_a_row_gets_the_rest(survey, tmp_path, monkeypatch):
    on_disk(monkeypatch, lambda file, piece: file.write(piece[:1000]))
    cache = load_pixels(survey, VIEW, tmp_path / "c", progress=False)
    assert torch.equal(cache.pixels, load_pixels(survey, VIEW, progress=False).pixels)


def wait_for_disk(cache):
    "Until a cache was flushed, which a thread does behind its maker"
    end = time.monotonic() + 60
    while not (cache.folder / "flushed").exists():
        assert time.monotonic() < end
        time.sleep(.01)


def test_what_never_reached_the_disk_is_looked_at_whole(tmp_path, monkeypatch):
    source, row = folder_of(tmp_path, {f"m{i:03}": JPEG for i in range(100)}), 50   # not among the 32 of a sample
    cache = load_pixels(source, VIEW, tmp_path / "c", progress=False)
    wait_for_disk(cache)
    file = cache.folder / "pixels.u8"
    overwritten(file, row * ROW, bytes([file.read_bytes()[row * ROW] ^ 1]))
    load_pixels(source, VIEW, tmp_path / "c", progress=False)   # a sample does not meet it
    (cache.folder / "flushed").unlink()
    load_pixels(source, VIEW, tmp_path / "c", progress=False)   # written since this machine was started: no power cut
    wait_for_disk(cache)
    (cache.folder / "flushed").unlink()
    started = data._started()
    monkeypatch.setattr(data, "_started", lambda: time.time() + 1)
    with pytest.warns(UserWarning, match="holds other pixels of 'm050' than were written: it is built anew"):
        again = load_pixels(source, VIEW, tmp_path / "c", progress=False)
    assert again.verify(source) == []
    wait_for_disk(again)
    (again.folder / "flushed").unlink()
    wait_for_disk(load_pixels(source, VIEW, tmp_path / "c", progress=False))   # found whole: the next asks no more
    assert time.time() - 365 * 86400 * 5 < started < time.time()


@pytest.mark.parametrize("code", [5, 28])   # it failed, it is full
def test_a_disk_that_fails_behind_is_said(survey, tmp_path, monkeypatch, code):
    cache = load_pixels(survey, VIEW, tmp_path / "c", progress=False)
    pixels = cache.pixels.clone()
    wait_for_disk(cache)
    (cache.folder / "flushed").unlink()
    def broken(fd): raise OSError(code, os.strerror(code))
    monkeypatch.setattr(data.os, "fsync", broken)
    with pytest.warns(UserWarning, match=f"did not reach the disk: .Errno {code}.*another cache_dir"):
        data._flush(cache.folder)
    assert not cache.folder.exists() and torch.equal(cache.pixels, pixels)   # nobody opens it again, who has it keeps it


def test_a_disk_that_refuses_a_cache_at_once_leaves_it_to_its_maker(survey, tmp_path, monkeypatch):
    def broken(fd): raise OSError(5, "Input/output error")
    monkeypatch.setattr(data.os, "fsync", broken)
    class Now(data.Thread):   # nothing of it is left to the order in which threads run
        def start(self): self.run()
    monkeypatch.setattr(data, "Thread", Now)
    with pytest.warns(UserWarning, match="did not reach the disk"):
        cache = load_pixels(survey, VIEW, tmp_path / "c", progress=False)
    assert not cache.folder.exists() and torch.equal(cache.pixels, load_pixels(survey, VIEW, progress=False).pixels)


def test_pixels_in_memory_need_no_switch_of_pillow(monkeypatch):
    monkeypatch.setattr(data.ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert decode(torch.full((3, 32, 32), 9, dtype=torch.uint8), VIEW).unique().tolist() == [9]
    with pytest.raises(InputError, match="LOAD_TRUNCATED_IMAGES is on"): decode(JPEG, VIEW)


def test_the_flush_of_a_damaged_cache_keeps_out_of_the_next_one(survey, tmp_path, monkeypatch):
    real, calls, last, go_on = data.os.fsync, itertools.count(1), threading.Event(), threading.Event()
    def held(fd):   # at the last of three files
        if next(calls) == 3:
            last.set()
            assert go_on.wait(60)
        real(fd)
    monkeypatch.setattr(data.os, "fsync", held)
    first = load_pixels(survey, VIEW, tmp_path / "c", progress=False)
    assert last.wait(60)
    (first.folder / "cache.json").write_text("[1, NaN]")
    rmtree = shutil.rmtree
    def slowly(folder, **keys):   # the worst moment for a note: the files are gone, their folder is not
        if Path(folder) == first.folder:
            for file in Path(folder).iterdir(): file.unlink()
            go_on.set()
            time.sleep(.5)
            if list(Path(folder).iterdir()): return   # not empty: what rmtree would meet
        rmtree(folder, **keys)
    monkeypatch.setattr(data.shutil, "rmtree", slowly)
    with pytest.warns(UserWarning, match="built anew"):
        again = load_pixels(survey, VIEW, tmp_path / "c", progress=False)
    wait_for_disk(again)
    assert again.verify(survey) == [] and len(load_pixels(survey, VIEW, tmp_path / "c", progress=False)) == 20


def test_what_a_user_keeps_in_a_cache_is_left_alone(survey, tmp_path):
    cache = load_pixels(survey, VIEW, tmp_path / "c", progress=False)
    wait_for_disk(cache)
    (cache.folder / "flushed").unlink()
    (cache.folder / "notes").mkdir()
    data._flush(cache.folder)
    assert (cache.folder / "flushed").exists() and (cache.folder / "notes").exists()


def test_what_needs_no_flush_is_not_spoken_of(survey, tmp_path, monkeypatch):
    cache = load_pixels(survey, VIEW, tmp_path / "c", progress=False)
    wait_for_disk(cache)
    (cache.folder / "flushed").unlink()
    def refused(fd): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(data.os, "fsync", refused)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data._flush(tmp_path / "deleted")
        data._flush(cache.folder)   # another user's
        monkeypatch.setattr(data.os, "access", lambda path, mode: False)
        data._flush(cache.folder)   # may only be read
    assert len(load_pixels(survey, VIEW, tmp_path / "c", progress=False)) == 20 and cache.folder.exists()


def test_no_picture_at_all_is_an_error(tmp_path):
    source = folder_of(tmp_path, {"a": b"", "b": b"<html>"})
    for cache_dir in (None, tmp_path / "c"):
        with pytest.raises(InputError, match="None of the 2 pictures can be used.*a empty file"):
            load_pixels(source, VIEW, cache_dir, progress=False)


# Sources

def test_catalogs_that_cannot_be_a_source(tmp_path):
    ok = pd.DataFrame({"id_str": ["a", "b"], "file_loc": ["a.jpg", "b.jpg"]})
    cases = [(ok.drop(columns="file_loc"), "no column 'file_loc'"), (ok[:0], "no galaxies"),
             (ok.assign(id_str=["a", "a"]), "more than once \\('a'\\)"), (ok.assign(id_str=[1., 2.]), "not text"),
             (ok.assign(id_str=["a", None]), "row 1 is nan"), (ok.rename(columns={"id_str": "id"}), "'id_str'")]
    for table, message in cases:
        with pytest.raises(InputError, match=message): FolderImages(table, tmp_path)
    with pytest.raises(InputError, match="There is no folder"): FolderImages(ok, tmp_path / "nowhere")
    assert FolderImages(ok.assign(id_str=[587739505552785605, 2]), tmp_path).ids[0] == "587739505552785605"


@pytest.mark.parametrize("struct_column", [False, True])
def test_parquet_gives_the_bytes_of_every_row(tmp_path, struct_column):
    pictures = [encoded(galaxy(i)) for i in range(10)]
    cells = [{"bytes": p, "path": "x"} for p in pictures] if struct_column else list(pictures)
    cells[4] = None
    table = pd.DataFrame({"id_str": [f"g{i}" for i in range(10)], "image": cells})
    table[:6].to_parquet(tmp_path / "a.parquet", row_group_size=4)
    table[6:].to_parquet(tmp_path / "b.parquet")
    source = ParquetImages(tmp_path)
    cache = load_pixels(source, VIEW, tmp_path / "c", threads=3, progress=False)
    assert cache.ids == [f"g{i}" for i in range(10) if i != 4] and "missing" in cache.failures["reason"][0]
    for id, row in zip(cache.ids, cache.pixels): assert torch.equal(row, decode(pictures[int(id[1])], VIEW))
    assert source.fingerprint() == ParquetImages(tmp_path).fingerprint()


def test_parquet_that_is_none(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="not whole parquet"): ParquetImages(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="not whole parquet"): ParquetImages(tmp_path / "b.parquet")
    pd.DataFrame({"id_str": ["a"], "picture": [JPEG]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match="no column 'image'"): ParquetImages(tmp_path / "a.parquet")
    assert ParquetImages(tmp_path / "a.parquet", image="picture").read(0) == JPEG


def test_a_damaged_page_of_parquet_is_set_aside(tmp_path):
    pictures, file = [encoded(galaxy(i)) for i in range(8)], tmp_path / "a.parquet"
    pd.DataFrame({"id_str": [f"g{i}" for i in range(8)], "image": pictures}).to_parquet(
        file, row_group_size=4, write_page_checksum=True, compression=None, use_dictionary=False)
    content = file.read_bytes()
    where = content.index(pictures[1]) + 300
    file.write_bytes(content[:where] + bytes([content[where] ^ 1]) + content[where + 1:])
    cache = load_pixels(ParquetImages(file), VIEW, progress=False)
    assert cache.ids == ["g4", "g5", "g6", "g7"] and "row group 0" in cache.failures["reason"][0]


@pytest.mark.parametrize("into", [torch.empty(3, 64, 64, dtype=torch.uint8), torch.empty(3, 32, 32), torch.empty(32, 32, 3, dtype=torch.uint8)])
def test_a_place_that_does_not_fit_the_view_is_refused(into):
    with pytest.raises(InputError, match="into: a uint8 tensor of .3, 32, 32. is needed"): decode(JPEG, VIEW, into)


def test_pixels_can_be_made_where_they_are_wanted():
    for view in (VIEW, View(64), View(16, greyscale=True), View(96, native=True)):
        into = torch.full((3, view.size, view.size), 7, dtype=torch.uint8)
        assert decode(JPEG, view, into) is into and torch.equal(into, decode(JPEG, view))


def test_arrays_are_checked_and_summed_up_by_their_pixels(tmp_path):
    images = torch.randint(0, 255, (4, 3, 64, 64), dtype=torch.uint8)
    for wrong in (images.float(), images[:, :1], images[0]):
        with pytest.raises(InputError, match="a uint8 tensor"): ArrayImages(list("abcd"), wrong)
    first = load_pixels(ArrayImages(list("abcd"), images), View(64), tmp_path, progress=False)
    images[2, 0, 5, 5] ^= 1
    second = load_pixels(ArrayImages(list("abcd"), images), View(64), tmp_path, progress=False)
    assert torch.equal(second.pixels, images) and not torch.equal(first.pixels, images)


# Batches for training

def votes_of(n, schema=get_schema("dr5"), seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"id_str": [f"g{i:03}" for i in range(n)]}).join(
        pd.DataFrame(rng.integers(0, 40, (n, len(schema.columns))), columns=schema.columns))


def test_votes_follow_the_id_and_not_the_place(tmp_path):
    source = dirty(tmp_path)
    catalog = votes_of(60).sample(frac=1, random_state=1)  # another order than the pictures
    catalog = pd.concat([catalog, votes_of(70)[65:]])       # and ids that have none
    dls = galaxy_dls(catalog, source, "dr5", view=VIEW, bs=8, device="cpu", augment=False, progress=False)
    by_id, seen = catalog.set_index("id_str"), []
    for dl in dls.loaders:
        for x, y in dl.new(shuffle=False, drop_last=False):
            seen += x.ids
            assert np.array_equal(y.numpy(), by_id.loc[x.ids, dls.schema.columns].to_numpy(np.float32))
            for id, picture in zip(x.ids, x):
                alone = dls.view.normalise(decode(source.read(source.ids.index(id)), VIEW))
                assert torch.allclose(picture, alone, atol=1e-5)
    assert sorted(seen + dls.failures["id_str"].tolist()) == source.ids and len(set(seen)) == len(seen)
    assert dls.c == 34 and isinstance(y, TensorVotes) and not set(dls.train_ds.ids) & set(dls.valid_ds.ids)


def test_ids_are_lost_rather_than_wrong(survey):
    dls = galaxy_dls(votes_of(20).assign(id_str=survey.ids), survey, "dr5", view=VIEW, device="cpu", progress=False)
    x, _ = dls.one_batch()
    assert len(x.ids) == len(x) and not hasattr(x.flip(0), "ids") and not hasattr(x[1:], "ids")


def test_a_run_goes_on_where_it_was(survey):
    votes = votes_of(20).assign(id_str=survey.ids)
    def loaders(): return galaxy_dls(votes, survey, "dr5", view=VIEW, bs=4, device="cpu", seed=3, progress=False)
    def epoch(dls): return [(x.ids, x.sum().item()) for x, _ in dls.train]
    whole, resumed = loaders(), loaders()
    first, second, third = (epoch(whole) for _ in range(3))
    torch.manual_seed(99)
    resumed.train.epoch = 2
    assert epoch(resumed) == third != second and first != second


def test_flips_swap_what_has_a_hand():
    augment, n = Augment(), 400
    augment.swap, x = data._swap(["left", "right", "none"], [("left", "right")]), torch.zeros(n, 3, 8, 8)
    votes = TensorVotes(torch.tensor([[30., 5., 2.]]).repeat(n, 1), schema="s")
    augment.generator.manual_seed(0)
    _, y = augment((x, votes), split_idx=0)
    augment.generator.manual_seed(0)
    theta, mirrored = augment.draw(n)
    assert torch.equal(torch.linalg.det(theta[:, :, :2]) < 0, mirrored) and 150 < mirrored.sum() < 250
    assert (y[mirrored] == torch.tensor([5., 30., 2.])).all() and (y[~mirrored] == torch.tensor([30., 5., 2.])).all()
    assert isinstance(y, TensorVotes) and y.schema == "s"
    _, same = augment((x, votes), split_idx=1)
    assert torch.equal(same, votes)


def test_a_pinwheel_tells_its_hand_after_any_turn():
    "The picture itself: a mirrored spiral winds the other way, a turned one does not"
    y, x = torch.meshgrid(torch.linspace(-1, 1, 65), torch.linspace(-1, 1, 65), indexing="ij")
    radius, angle = (x ** 2 + y ** 2).sqrt(), torch.atan2(y, x)
    spiral = (.5 + .5 * torch.cos(2 * angle - 8 * radius)) * (radius < .8)
    def hand(image):  # correlation of the picture with a winding phase of either sense
        sums = [(image * torch.exp(1j * (2 * angle - s * 8 * radius)) * (radius < .7)).sum().abs() for s in (1, -1)]
        return bool(sums[0] > sums[1])
    augment = Augment(zoom=0., shift=0.)
    augment.generator.manual_seed(1)
    out, _ = augment((spiral.expand(40, 3, 65, 65), torch.zeros(40)), split_idx=0)
    augment.generator.manual_seed(1)
    _, mirrored = augment.draw(40)
    assert [hand(image[0]) for image in out] == [not m for m in mirrored.tolist()]


def test_labels_of_every_kind(survey):
    catalog = pd.DataFrame({"id_str": survey.ids, "ring": [0, 1] * 10, "type": list("abcd") * 5,
                            "ratio": np.linspace(.1, .9, 20), "wind": ["cw", "acw"] * 10})
    options = dict(view=VIEW, bs=8, device="cpu", valid=.3, progress=False)
    def dls(**kwargs): return galaxy_dls(catalog, survey, **options, **kwargs)
    ring, kind, ratio = dls(label="ring"), dls(label="type"), dls(label="ratio")
    assert ring.vocab == [0, 1] and ring.c == 2 and kind.vocab == list("abcd") and ratio.vocab is None and ratio.c == 1
    (_, y), (x, z) = ring.one_batch(), ratio.one_batch()
    assert y.dtype == torch.int64 and z.dtype == torch.float32
    assert np.allclose(z, catalog.set_index("id_str").loc[x.ids, "ratio"])
    wind = dls(label="wind", flip_pairs=[("cw", "acw")])
    x, y = wind.one_batch()
    mirrored = wind.train.after_batch.fs[0]
    mirrored.generator.manual_seed(int(np.random.SeedSequence((0, wind.train.epoch)).generate_state(1)[0]))
    flipped = mirrored.draw(len(x))[1].numpy()
    own = catalog.set_index("id_str").loc[x.ids, "wind"].map(wind.vocab.index).to_numpy()
    assert np.array_equal(y.numpy(), np.where(flipped, 1 - own, own)) and flipped.any()


def test_tables_that_cannot_be_learnt(survey):
    votes = votes_of(20).assign(id_str=survey.ids)
    column, options = get_schema("dr5").columns[0], dict(view=VIEW, device="cpu", progress=False)
    def fails(message, catalog=votes, **kwargs):
        with pytest.raises(InputError, match=message): galaxy_dls(catalog, survey, **options, **kwargs)
    fails("no column", votes.drop(columns=column), schema="dr5")
    fails("votes are whole numbers", votes.assign(**{column: .5}), schema="dr5")
    fails("whole numbers", votes.assign(**{column: np.inf}), schema="dr5")
    fails("not numbers", votes.assign(**{column: "many"}), schema="dr5")
    fails("'id_str'", votes.drop(columns="id_str"), schema="dr5")
    fails("more than once", pd.concat([votes, votes]), schema="dr5")
    fails("No galaxy with a picture is for validation", votes.assign(split="train"), schema="dr5")
    fails("did you mean", votes.assign(split="training"), schema="dr5")
    fails("flip_pairs has 'clockwise'", schema="dr5", flip_pairs=[("clockwise", column)])
    fails("nothing to learn", votes.assign(ring=1), label="ring")
    fails("have no 'ring'", votes.assign(ring=[1, None] * 10), label="ring")
    empty = galaxy_dls(votes.assign(**{column: np.nan}), survey, **options)  # nobody was asked
    assert empty.schema.name == "dr5" and (empty.train_ds.targets[:, 0] == 0).all()


def test_the_split_of_the_catalog_is_kept(survey):
    votes = votes_of(20).assign(id_str=survey.ids)
    split = votes.assign(split=["train"] * 12 + ["valid"] * 5 + ["test"] * 3)
    dls = galaxy_dls(split, survey, "dr5", view=VIEW, device="cpu", progress=False)
    assert dls.train_ds.ids.tolist() == survey.ids[:12] and dls.valid_ds.ids.tolist() == survey.ids[12:17]
    is_valid = votes.assign(is_valid=[True] * 4 + [False] * 16)
    dls = galaxy_dls(is_valid, survey, "dr5", view=VIEW, device="cpu", progress=False)
    assert dls.valid_ds.ids.tolist() == survey.ids[:4]


def test_nothing_to_show_is_said():
    with pytest.raises(InputError, match="no galaxies to show"): image_grid(torch.zeros(0, 3, 8, 8))


# Showing, as fastai calls it

class Constant(torch.nn.Module):
    "The same numbers for every galaxy"
    def __init__(self, *numbers):
        super().__init__()
        self.numbers = torch.nn.Parameter(torch.tensor(numbers))
    def forward(self, x): return self.numbers.expand(len(x), -1)


class Any(torch.nn.Module):
    def forward(self, x, y): return x.mean()
    def decodes(self, x): return x if x.shape[1] > 2 else x.argmax(1)


def shown():
    "Every text of the open figures, and the dots"
    texts = [text.get_text() for n in plt.get_fignums() for ax in plt.figure(n).axes for text in ax.texts]
    dots = [line for n in plt.get_fignums() for ax in plt.figure(n).axes for line in ax.lines]
    plt.close("all")
    return texts, dots


def test_show_batch_and_show_results_of_votes(survey):
    schema = get_schema("dr5")
    votes = pd.DataFrame(0, index=range(20), columns=schema.columns).assign(id_str=survey.ids)
    votes[["smooth-or-featured-dr5_featured-or-disk", "smooth-or-featured-dr5_smooth"]] = [30, 10]
    votes[["has-spiral-arms-dr5_yes", "has-spiral-arms-dr5_no"]] = [25, 3]
    dls = galaxy_dls(votes, survey, schema, view=VIEW, bs=4, device="cpu", progress=False)
    dls.show_batch(max_n=3)
    texts, dots = shown()
    assert texts.count("featured-or-disk") == 3 and texts.count("30/40") == 3 and not dots
    assert texts.count("spiral arms: yes") == 3 and texts.count("25/28") == 3
    assert sum(text in survey.ids for text in texts) == 3
    numbers = torch.ones(34)
    numbers[:3] = torch.tensor([1., 2., 1.])  # concentrations or fractions: shown as a fraction of their question
    learn = Learner(dls, Constant(*numbers.tolist()), loss_func=Any(), cbs=[])
    learn.remove_cb(ProgressCallback)
    learn.show_results(max_n=2)
    texts, dots = shown()
    assert [dot.get_xdata()[0] for dot in dots] == [.5] * 4 and sum(text in survey.ids for text in texts) == 2


def test_show_batch_and_show_results_of_labels(survey):
    catalog = pd.DataFrame({"id_str": survey.ids, "ring": ["no", "yes"] * 10, "ratio": np.linspace(0, 1, 20)})
    dls = galaxy_dls(catalog, survey, label="ring", view=VIEW, bs=4, device="cpu", progress=False)
    learn = Learner(dls, Constant(0., 1.), loss_func=Any())
    learn.remove_cb(ProgressCallback)
    learn.show_results(max_n=2)
    texts, _ = shown()
    for text in texts:
        id, label = text.split("\n")
        assert label == f"ring: {catalog.set_index('id_str').ring[id]}, predicted yes"
    galaxy_dls(catalog, survey, label="ratio", view=VIEW, bs=4, device="cpu", progress=False).show_batch(max_n=2)
    for text in shown()[0]:
        id, label = text.split("\n")
        assert label == f"ratio: {catalog.set_index('id_str').ratio[id]:.2f}"


def test_votes_in_a_data_block(survey):
    schema, votes = get_schema("dr5"), votes_of(20).assign(id_str=survey.ids)
    picture = ColReader("id_str", pref=f"{survey.root}/", suff=".jpg")
    block = DataBlock(blocks=(ImageBlock, VotesBlock("dr5")), get_x=picture, get_y=ColReader(schema.columns))
    dls = block.dataloaders(votes, bs=4, num_workers=0, device="cpu")
    x, y = dls.one_batch()
    assert isinstance(y, TensorVotes) and y.schema == schema and y.shape == (4, 34)
    dls.show_batch(max_n=2)
    assert any("/" in text for text in shown()[0])


# ---- FITS cutouts (I21 to I24)

NATIVE = .262 / 3600


def bands(seed=0, size=60):
    "g, r, z of a blob away from the centre: the same in no mirror"
    y, x = np.mgrid[:size, :size] / size - .5
    blob = np.exp(-((x - .15) ** 2 / .004 + (y - .25) ** 2 / .02))
    return np.stack([blob * f for f in (.5, 1., 1.6)]) + np.random.default_rng(seed).normal(0, .002, (3, size, size))


def header(hdu, dx=-NATIVE, dy=NATIVE, names="grz"):
    hdu.header.update(dict(CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CRVAL1=10., CRVAL2=1., CRPIX1=30., CRPIX2=30.,
                           CD1_1=dx, CD1_2=0., CD2_1=0., CD2_2=dy))
    if names: hdu.header.update({"BANDS": names, **{f"BAND{i}": band for i, band in enumerate(names)}})
    return hdu


def written(*hdus, **kwargs):
    fits.HDUList(list(hdus)).writeto(out := BytesIO(), **kwargs)
    return out.getvalue()


def cube(values=None, names="grz", **kwargs):
    "As the Legacy Survey writes it: rows from the bottom"
    values = (bands() if values is None else values)[:, ::-1]
    return header(fits.PrimaryHDU(np.ascontiguousarray(values).astype(">f4")), names=names, **kwargs)


def cutouts(root, **files):
    for id, content in files.items(): (root / f"{id}.fits").write_bytes(content)
    return pd.DataFrame({"id_str": list(files), "file_loc": [f"{id}.fits" for id in files]})


def expected(values=None):
    "The picture of `bands`, composed by the simulator's own function"
    values = bands() if values is None else values
    return compose_decals(torch.tensor(values.astype(np.float32))[None])[0].mul(255).round().to(torch.uint8)


def test_a_fits_cutout_is_composed_as_galaxy_zoo_composes(tmp_path):
    source = FitsImages(cutouts(tmp_path, a=written(cube()), b=written(cube(), checksum=True)), tmp_path)
    for i in range(2): assert torch.equal(source.read(i), expected())
    assert torch.equal(load_pixels(source, View(60), progress=False).pixels[0], expected())


def test_north_is_up_and_east_left(tmp_path):
    "The star at the first pixel of the file is at the lower left; north down or east right in the header is turned back"
    star = np.zeros((3, 20, 20), np.float32)
    star[:, 0, 0] = 5   # row 0 of a FITS file is the lowest
    files = {f"{x}{y}": written(header(fits.PrimaryHDU(star), dx, dy))
             for x, dx in (("l", -NATIVE), ("r", NATIVE)) for y, dy in (("u", NATIVE), ("d", -NATIVE))}
    source = FitsImages(cutouts(tmp_path, **files, none=written(fits.PrimaryHDU(star))), tmp_path)
    places = {id: tuple((source.read(i)[0] == source.read(i)[0].max()).nonzero()[0].tolist()) for i, id in enumerate(source.ids)}
    assert places == {"lu": (19, 0), "ru": (19, 19), "ld": (0, 0), "rd": (0, 19), "none": (19, 0)}


def test_i22_every_way_of_writing_numbers(tmp_path):
    "Big-endian or not, floats or scaled whole numbers, unsigned, compressed, one extension a band, bands in any order"
    values, step = bands(), 1e-3
    whole = np.round(values[:, ::-1] / step).astype(np.int32)
    scaled = header(fits.PrimaryHDU(whole.astype(np.int16)))
    scaled.header.update(BSCALE=step, BZERO=0.)
    shifted = header(fits.PrimaryHDU((whole - 7).astype(np.int16)))
    shifted.header.update(BSCALE=step, BZERO=7 * step)
    planes = [header(fits.ImageHDU(values[i, ::-1].astype(">f4")), names="") for i in (2, 0, 1)]
    for plane, band in zip(planes, "zgr"): plane.header["BAND"] = band
    noise = header(fits.ImageHDU(np.full((60, 60), 9e9)), names="")
    noise.header.update(BAND="g", IMTYPE="invvar")
    named = [header(fits.ImageHDU(values[i, ::-1].astype(">f4"), name=f"image_{band}"), names="") for i, band in enumerate("grz")]
    four = cube(np.concatenate([values[:2], np.full((1, 60, 60), 7.), values[2:]]), names="griz")
    files = dict(le=written(header(fits.PrimaryHDU(values[:, ::-1].astype("<f8")))), scaled=written(scaled),
                 shifted=written(shifted), extensions=written(fits.PrimaryHDU(), noise, *planes),
                 names=written(fits.PrimaryHDU(), *named), order=written(cube(values[[2, 0, 1]], names="zgr")),
                 four=written(four), unnamed=written(cube(names="")),
                 packed=gzip.compress(written(cube())),
                 tiles=written(fits.PrimaryHDU(), header(fits.CompImageHDU(values[:, ::-1].astype("f4"), quantize_level=0, compression_type="GZIP_1"))))
    source = FitsImages(cutouts(tmp_path, **files), tmp_path)
    for i, id in enumerate(source.ids):
        assert (source.read(i).int() - expected().int()).abs().max() <= (2 if id in ("scaled", "shifted") else 0), id


def test_i21_pixels_without_a_value(tmp_path):
    "NaN, infinity and BLANK become sky up to a tenth of the picture; with more it is set aside"
    few, many = bands(), bands()
    few[:, :5, :5], few[1, 6, 6], filled = np.nan, np.inf, bands()
    filled[:, :5, :5], filled[1, 6, 6] = 0, 0
    many[:, :10] = np.nan
    whole = np.round(bands()[:, ::-1] * 1000).astype(np.int16)
    whole[:, -5:, :5] = -99
    blank = header(fits.PrimaryHDU(whole))
    blank.header.update(BSCALE=1e-3, BZERO=0., BLANK=-99)
    source = FitsImages(cutouts(tmp_path, few=written(cube(few)), blank=written(blank), many=written(cube(many))), tmp_path)
    assert torch.equal(source.read(0), expected(filled))
    corner = bands()
    corner[:, :5, :5] = 0
    assert (source.read(1).int() - expected(corner).int()).abs().max() <= 2
    with pytest.raises(ImageError, match="17% of the pixels have no value"): source.read(2)


def bad_fits():
    whole, summed = written(cube()), written(cube(), checksum=True)
    flipped = bytearray(summed)
    flipped[-4000] ^= 4
    table = fits.BinTableHDU.from_columns([fits.Column("x", "E", array=np.zeros(3))])
    huge = written(cube()).replace(b"NAXIS1  =                   60", b"NAXIS1  =                60000")
    return {"cut short": whole[:9000], "not a whole FITS file": whole[:1500], "damaged: its bytes": bytes(flipped),
            "more than .* bytes when unpacked": gzip.compress(bytes(data.MAX_BYTES + 10), 1), "cut short: the gzip": gzip.compress(whole)[:900],
            "damaged gzip": b"\x1f\x8b" + b"junk" * 30, "no image in any part": written(fits.PrimaryHDU(), table),
            "no band 'z': .*the file has g, r": written(cube(bands()[:2], names="gr")), "too large": huge,
            "no band 'g'.*one without a name": written(header(fits.PrimaryHDU(bands()[0]), names="")),
            "bands of different sizes": written(fits.PrimaryHDU(), *[fits.ImageHDU(np.zeros((40 + i, 40)), name=b) for i, b in enumerate("grz")]),
            "not a FITS file, but a web page": b"<html>no such cutout</html>", "empty file|not a FITS file": b""}


def test_i23_i24_fits_files_that_cannot_be_used(tmp_path):
    "Each is set aside under its own id with its reason; the job goes on"
    bad = bad_fits()
    table = cutouts(tmp_path, **{f"bad{i}": content for i, content in enumerate(bad.values())}, good=written(cube()))
    source = FitsImages(table, tmp_path)
    for i, reason in enumerate(bad):
        with pytest.raises(ImageError, match=reason): source.read(i)
    cache = load_pixels(source, View(32), progress=False)
    assert cache.ids == ["good"] and len(cache.failures) == len(bad)


def test_fits_files_stay_in_their_folder(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "out.fits").write_bytes(written(cube()))
    source = FitsImages(pd.DataFrame({"id_str": ["a"], "file_loc": ["../out.fits"]}), tmp_path / "in")
    with pytest.raises(ImageError, match="outside the root"): source.read(0)


@pytest.mark.parametrize("columns", [{"pixel_scale": .2}, {"petro_th50": 5., "petro_th90": 12.}, {"petroR50_r": 20., "petroR90_r": 10.}])
def test_a_cutout_at_the_scale_of_galaxy_zoo(tmp_path, columns):
    "424 px of .2 arcsec show 84.8 arcsec: a blob of known size is as large as it should be, and beyond the edge is sky"
    source = FitsImages(cutouts(tmp_path, a=written(cube(bands(size=200)))).assign(**columns), tmp_path)
    picture, scale = source.read(0), .2
    assert picture.shape == (3, 424, 424) and source.scales.tolist() == pytest.approx([scale])
    edge = (424 - 200 * .262 / scale) / 2
    assert picture[:, :int(edge) - 2].max() == picture[:, 0, 0].max() == expected(np.zeros((3, 2, 2))).max()
    y, x = (picture[0] == picture[0].max()).nonzero().float().mean(0).tolist()
    assert (x, y) == pytest.approx((edge + .65 * 200 * .262 / scale, edge + .75 * 200 * .262 / scale), abs=4)
    assert source.fingerprint() != FitsImages(cutouts(tmp_path, a=written(cube())), tmp_path).fingerprint()


def test_a_cutout_without_a_scale(tmp_path):
    table = cutouts(tmp_path, a=written(cube()), b=written(fits.PrimaryHDU(bands())), c=written(cube()))
    source = FitsImages(table.assign(pixel_scale=[np.nan, .2, 900.]), tmp_path)
    for i, reason in enumerate(("Petrosian radii are missing", "how large its pixels are", "cannot be had")):
        with pytest.raises(ImageError, match=reason): source.read(i)


def test_galaxy_zoo_scale():
    assert galaxy_zoo_scale(5, 12).item() == pytest.approx(.2) and galaxy_zoo_scale(20, 10).item() == pytest.approx(.2)
    assert galaxy_zoo_scale([1, np.nan], [2, 3])[0] == .1 and np.isnan(galaxy_zoo_scale([1, np.nan], [2, 3])[1])


# ---- galaxies that are done

def test_done_are_neither_read_nor_decoded(survey):
    reads = []
    source = SimpleNamespace(ids=survey.ids, read=lambda i: reads.append(i) or survey.read(i))
    source = type("Source", (), {"ids": survey.ids, "__len__": lambda self: 20, "read": staticmethod(source.read)})()
    done = lambda ids: np.array([int(id in set(survey.ids[5:]) ) for id in ids], bool)
    batches = list(iter_batches(source, VIEW, done=done))
    assert batches[0][0] == survey.ids[:5] and sorted(reads) == list(range(5))
    cache = load_pixels(survey, VIEW, progress=False)
    assert [ids for ids, _ in iter_batches(cache, VIEW, done=done)] == [survey.ids[:5]]
    assert next(iter_batches(cache, VIEW, indices=[9, 3, 1], done=done))[0] == [survey.ids[3], survey.ids[1]]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("need", [300, 100, 40])
@pytest.mark.parametrize("side", [320, 317])
def test_a_jpeg_has_the_pixels_that_pillow_gives_it(mode, subsampling, need, side):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).resize((side, 240)).convert(mode)
    noise.save(stored := BytesIO(), "JPEG", **({} if mode == "L" else dict(subsampling=subsampling)))
    (theirs := Image.open(stored)).draft(None, (need, need))
    pixels = data._pixels(stored.getvalue(), need)
    assert np.array_equal(pixels, np.asarray(theirs.convert("RGB")))
    assert pixels.shape[0] == {300: 240, 100: 120, 40: 60}[need] or mode == "CMYK"


def test_a_jpeg_that_only_pillow_forgives_is_still_read():
    Image.new("RGB", (64, 64), "white").save(stored := BytesIO(), "JPEG")
    odd = stored.getvalue()[:-2] + b"\x00\x00" + stored.getvalue()[-2:]   # bytes between the pixels and the end
    assert np.array_equal(data._pixels(odd, 64), np.full((64, 64, 3), 255))
    with pytest.raises(ImageError, match="truncated"): decode(stored.getvalue()[:-40])


@pytest.mark.parametrize("says", [[1, 0], ["True", "False"], ["true", "false"], ["1", "0"], [1.0, 0.0], [True, False]])
def test_is_valid_in_every_form(says):
    assert data._sides(pd.DataFrame(dict(is_valid=pd.Series(says, dtype=object))), .2, 0).tolist() == [1, 0]
    assert data._sides(pd.DataFrame(dict(is_valid=says)), .2, 0).tolist() == [1, 0]


@pytest.mark.parametrize("says,shown", [(True, "nan"), ("yes", "'yes'"), (2, "2"), ("", "''")])
def test_is_valid_that_says_nothing(says, shown):
    table = pd.DataFrame(dict(is_valid=pd.Series([True, None if says is True else says], dtype=object)))
    with pytest.raises(InputError, match=f"Column 'is_valid' has ({shown}|None) in row 1: true or false"): data._sides(table, .2, 0)


def test_test_galaxies_never_train():
    table = pd.DataFrame(dict(id_str=list("abcd"), split=["train", "valid", "test", "test"], is_valid=[0, 1, 0, 1]))
    assert data._sides(table, .2, 0).tolist() == [0, 1, 2, 2]
    with pytest.raises(InputError, match="Row 0 is 'train' in column 'split' and True in 'is_valid': leave one"):
        data._sides(table.assign(is_valid=True), .2, 0)


def test_a_split_into_something_else_does_not_matter_where_is_valid_says_it():
    table = pd.DataFrame(dict(id_str=list("abcd"), split=["decals", "sdss"] * 2, is_valid=[0, 1, 0, 1]))
    assert data._sides(table, .2, 0).tolist() == [0, 1, 0, 1]
    with pytest.raises(InputError, match="Column 'split' has 'decals'"): data._sides(table.drop(columns="is_valid"), .2, 0)


def test_a_disk_that_refuses_without_a_lock_is_still_said(survey, tmp_path, monkeypatch):
    cache = load_pixels(survey, VIEW, tmp_path / "c", progress=False)
    wait_for_disk(cache)
    (cache.folder / "flushed").unlink()
    def broken(fd): raise OSError(122, "Disk quota exceeded")
    def no_lock(path): raise IsADirectoryError(21, "Is a directory")
    monkeypatch.setattr(data.os, "fsync", broken)
    monkeypatch.setattr(data, "FileLock", no_lock)
    with pytest.warns(UserWarning, match="did not reach the disk: .*quota"): data._flush(cache.folder)
    assert not (cache.folder / "flushed").exists()


@pytest.mark.parametrize("blank, rest", [("", r"catalog\[catalog\['kind'\].str.strip\(\) != ''\]"), (None, r"catalog.dropna\(subset=\['kind'\]\)")])
def test_blank_is_no_class(blank, rest):
    table = pd.DataFrame(dict(id_str=list("abcd"), kind=["ring", blank, "smooth", blank]))
    with pytest.raises(InputError, match=f"2 of 4 galaxies have no 'kind' \\('b' and on\\): leave them out, {rest}"):
        data._label_targets(table, "kind")


def test_one_galaxy_cannot_train():
    "Normalisation over a batch needs two"
    catalog = pd.DataFrame({"id_str": ["A", "B"], "ring": [0, 1], "split": ["train", "valid"]})
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with pytest.raises(InputError, match="Only one galaxy"): galaxy_dls(catalog, ArrayImages(["A", "B"], images), label="ring", view=View(32))
