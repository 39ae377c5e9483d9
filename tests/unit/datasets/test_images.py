"""Images of every kind become upright RGB of the right size, whole or not at all."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from dataset_cases import draw_image
from PIL import Image

import coordexp
from coordexp.datasets import images
from coordexp.datasets.images import ImageError, output_name, prepare_image

SIZE = (64, 32)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def read(path):
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image).astype(int)


def difference(path, expected: Image.Image) -> float:
    return float(np.abs(read(path) - np.asarray(expected.convert("RGB")).astype(int)).mean())


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_an_image_that_is_right_is_linked_not_encoded_again(tmp_path, suffix):
    source = save(tmp_path / "in" / f"a.{suffix}", draw_image(*SIZE))
    target = tmp_path / "out" / f"a.{suffix}"
    assert prepare_image(source, target, SIZE, SIZE, 95) == "linked"
    assert target.samefile(source)
    assert prepare_image(source, target, SIZE, SIZE, 95) == "kept"


def test_an_image_is_copied_where_links_are_impossible(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *a: (_ for _ in ()).throw(OSError("cross-device")))
    source = save(tmp_path / "a.jpg", draw_image(*SIZE))
    target = tmp_path / "out" / "a.jpg"
    assert prepare_image(source, target, SIZE, SIZE, 95) == "linked"
    assert not target.samefile(source)
    assert target.read_bytes() == source.read_bytes()


def test_a_resized_image_is_close_to_a_plain_high_quality_resize(tmp_path):
    big = draw_image(1024, 768)
    source = save(tmp_path / "a.jpg", big, quality=98)
    target = tmp_path / "out" / "a.jpg"
    assert prepare_image(source, target, big.size, (256, 192), 95) == "encoded"
    assert difference(target, big.resize((256, 192), Image.Resampling.BICUBIC)) < 3
    assert prepare_image(source, tmp_path / "large.jpg", big.size, (1280, 960), 95) == "encoded"
    assert difference(tmp_path / "large.jpg", big.resize((1280, 960), Image.Resampling.BICUBIC)) < 2


ODD = {
    "gray.jpg": lambda i: i.convert("L"),
    "cmyk.jpg": lambda i: i.convert("CMYK"),
    "palette.png": lambda i: i.quantize(200),
    "gray.png": lambda i: i.convert("L"),
    "rgba.png": lambda i: i.convert("RGBA"),
    "bilevel.png": lambda i: i.convert("1"),
    "la.png": lambda i: i.convert("LA"),
    "a.webp": lambda i: i,
    "a.bmp": lambda i: i,
    "a.tif": lambda i: i,
    "a.gif": lambda i: i,
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("resized", [True, False])
def test_every_mode_and_format_becomes_rgb(tmp_path, name, resized):
    original = ODD[name](draw_image(*SIZE))
    source = save(tmp_path / name, original)
    size = (96, 48) if resized else SIZE
    target = tmp_path / "out" / output_name(name, resized, tmp_path / "in")
    prepare_image(source, target, SIZE, size, 95)
    expected = Image.open(source).convert("RGBA").convert("RGB")
    limit = 30 if name in ("bilevel.png", "palette.png", "a.gif") and resized else 6
    assert read(target).shape == (size[1], size[0], 3)
    assert difference(target, expected.resize(size, Image.Resampling.BICUBIC)) < limit


def test_enlarging_is_bicubic_to_the_eye():
    """OpenCV's cubic kernel is a little sharper than Pillow's."""
    small = draw_image(120, 90)
    fast = np.asarray(images.resample(small, (192, 160))).astype(int)
    plain = np.asarray(small.resize((192, 160), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(fast - plain).mean() < 1
    assert np.abs(fast - plain).max() < 12


@pytest.mark.parametrize("quality", [90, 95, 97])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"keep_rgb": True}], ids=str)
def test_the_short_way_of_plain_jpegs_gives_the_bytes_of_the_general_one(tmp_path, monkeypatch, quality, options):
    source = save(tmp_path / "a.jpg", draw_image(150, 113), **options)
    short, general = tmp_path / "short.jpg", tmp_path / "general.jpg"
    with monkeypatch.context() as patched:
        patched.setattr(images, "_resized", None)  # must not be needed
        prepare_image(source, short, (150, 113), (192, 128), quality)
    monkeypatch.setattr(images, "_enlarged", lambda *a: None)
    prepare_image(source, general, (150, 113), (192, 128), quality)
    assert short.read_bytes() == general.read_bytes()


@pytest.mark.parametrize("save_as", [{"mode": "L"}, {"mode": "CMYK"}, {"orientation": 6}], ids=str)
def test_other_jpegs_take_the_general_way(tmp_path, monkeypatch, save_as):
    exif = Image.Exif()
    exif[0x0112] = save_as.get("orientation", 1)
    source = save(tmp_path / "a.jpg", draw_image(64, 40).convert(save_as.get("mode", "RGB")), exif=exif)
    annotated, size = ((40, 64), (64, 96)) if "orientation" in save_as else ((64, 40), (96, 64))
    monkeypatch.setattr(images.cv2, "imencode", None)  # must not be needed
    assert prepare_image(source, tmp_path / "out.jpg", annotated, size, 95) == "encoded"


def test_shrinking_smooths_first():
    """Alternating columns become grey, not stripes."""
    stripes = np.zeros((64, 640, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = np.asarray(images.resample(Image.fromarray(stripes), (96, 32))).astype(int)
    assert np.abs(small[:, 4:-4] - 128).max() < 24


def test_sixteen_bits_keep_their_range(tmp_path):
    values = np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE[1], SIZE[0]).astype(np.uint16)
    source = save(tmp_path / "deep.png", Image.fromarray(values))
    target = tmp_path / "out.png"
    prepare_image(source, target, SIZE, SIZE, 95)
    assert np.abs(read(target)[..., 0] - values / 65535 * 255).max() <= 1.5


def test_transparency_falls_on_white(tmp_path):
    clear = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    target = tmp_path / "out.png"
    prepare_image(save(tmp_path / "clear.png", clear), target, SIZE, SIZE, 95)
    assert (read(target) == 255).all()


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", SIZE, color) for color in ("red", "blue")]
    source = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    prepare_image(source, tmp_path / "out.jpg", SIZE, (96, 48), 95)
    assert read(tmp_path / "out.jpg")[..., 0].min() > 240


STORED_AS = [None, None, 0, 3, 1, 5, 2, 6, 4]  # by EXIF orientation: the transpose that stores an upright image


def save_turned(path: Path, upright: Image.Image, orientation: int) -> tuple[Path, Image.Image]:
    """Store an image turned and tagged so that it reads upright; (its path, the stored pixels)."""
    undo = STORED_AS[orientation]
    stored = upright if undo is None else upright.transpose(Image.Transpose(undo))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}
    return save(path, stored, exif=exif, **options), stored


def two_corners(width: int, height: int) -> Image.Image:
    """White with a red quarter at the top left and a blue one at the bottom right: no two turns look alike."""
    upright = Image.new("RGB", (width, height), "white")
    upright.paste("red", (0, 0, width // 2, height // 2))
    upright.paste("blue", (width // 2, height * 3 // 4, width, height))
    return upright


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [SIZE, (64, 64)], ids=str)
@pytest.mark.parametrize("resized", [True, False])
def test_exif_orientation_is_honoured(tmp_path, suffix, orientation, shape, resized):
    """Stored turned, tagged so that it reads upright: the result is upright and carries no tag."""
    upright = two_corners(*shape)
    source, _ = save_turned(tmp_path / f"a.{suffix}", upright, orientation)
    size = (shape[0] * 2, shape[1] * 2) if resized else shape
    prepare_image(source, tmp_path / "out.jpg", shape, size, 95)
    with Image.open(tmp_path / "out.jpg") as image:
        assert image.getexif().get(0x0112, 1) == 1
    assert difference(tmp_path / "out.jpg", upright.resize(size)) < 6


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_turned_tiffs_of_every_mode_come_out_upright(tmp_path, mode, compression, orientation):
    """Pillow maps uncompressed ones into memory when it is given a path, and then mixes up their sides."""
    upright = two_corners(*SIZE).convert("L" if mode == "I;16" else mode)
    stored = upright.transpose(Image.Transpose(STORED_AS[orientation]))
    if mode == "I;16":
        stored = Image.fromarray(np.asarray(stored).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112] = orientation
    source = save(tmp_path / "a.tif", stored, exif=exif, compression=compression)
    prepare_image(source, tmp_path / "out.png", SIZE, SIZE, 95)
    assert difference(tmp_path / "out.png", upright) < 1


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
@pytest.mark.parametrize("orientation", range(5, 9))
@pytest.mark.parametrize("resized", [True, False])
def test_annotations_made_on_the_unrotated_pixels_win_over_the_tag(tmp_path, suffix, orientation, resized):
    source, stored = save_turned(tmp_path / f"a.{suffix}", two_corners(*SIZE), orientation)
    size = (64, 96) if resized else stored.size
    prepare_image(source, tmp_path / "out.jpg", stored.size, size, 95)
    assert difference(tmp_path / "out.jpg", stored.resize(size)) < 6
    with Image.open(tmp_path / "out.jpg") as image:
        assert 0x0112 not in image.getexif()


def test_an_image_of_another_size_than_annotated_is_refused(tmp_path):
    source = save(tmp_path / "a.jpg", draw_image(50, 40))
    with pytest.raises(ImageError, match="50x40 pixels, its annotation 64x32"):
        prepare_image(source, tmp_path / "out.jpg", SIZE, SIZE, 95)


@pytest.mark.parametrize("resized", [True, False])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_refused(tmp_path, resized, suffix):
    source = save(tmp_path / f"a.{suffix}", draw_image(640, 480))
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3])
    size = (320, 224) if resized else (640, 480)
    with pytest.raises(ImageError, match="truncated") as error:
        prepare_image(source, tmp_path / "out" / f"a.{suffix}", (640, 480), size, 95)
    assert error.value.reason == "unreadable image"
    assert not list((tmp_path).glob("out/*"))


@pytest.mark.parametrize("data", [b"", b"<html>404</html>"])
def test_a_file_that_is_not_an_image_is_refused(tmp_path, data):
    (tmp_path / "a.jpg").write_bytes(data)
    with pytest.raises(ImageError, match=r"a\.jpg: not an image"):
        prepare_image(tmp_path / "a.jpg", tmp_path / "out.jpg", SIZE, SIZE, 95)


@pytest.mark.parametrize("change", [10**9, -(10**12)], ids=["newer", "older"])
def test_an_empty_target_or_one_of_another_source_is_made_again(tmp_path, change):
    source = save(tmp_path / "a.jpg", draw_image(*SIZE))
    target = tmp_path / "out.jpg"
    target.touch()
    assert prepare_image(source, target, SIZE, (96, 64), 95) == "encoded"
    assert prepare_image(source, target, SIZE, (96, 64), 95) == "kept"
    modified = source.stat().st_mtime_ns + change
    os.utime(source, ns=(modified, modified))
    assert prepare_image(source, target, SIZE, (96, 64), 95) == "encoded"


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    source = save(tmp_path / "a.png", draw_image(*SIZE))

    def full(self, handle, *args, **options):
        handle.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="no space"):
        prepare_image(source, tmp_path / "out" / "a.jpg", SIZE, (96, 64), 95)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("size", [SIZE, (96, 64), (32, 16)])
def test_a_full_disk_is_no_fault_of_the_image(tmp_path, monkeypatch, size):
    """It must stop the run: a ImageError would only leave the image out."""

    def full(*args, **options):
        raise OSError("no space left on device")

    for place, name in ((os, "link"), (images.shutil, "copyfile"), (images.tempfile, "mkstemp")):
        monkeypatch.setattr(place, name, full)
    with pytest.raises(OSError, match="no space"):
        prepare_image(save(tmp_path / "a.jpg", draw_image(*SIZE)), tmp_path / "out" / "a.jpg", SIZE, size, 95)


def test_the_same_image_gives_the_same_bytes(tmp_path):
    source = save(tmp_path / "a.jpg", draw_image(300, 200))
    for name in ("one.jpg", "two.jpg"):
        prepare_image(source, tmp_path / name, (300, 200), (192, 128), 95)
    assert (tmp_path / "one.jpg").read_bytes() == (tmp_path / "two.jpg").read_bytes()


def test_an_eps_never_starts_a_program(tmp_path, monkeypatch):
    import subprocess

    for name in ("Popen", "check_call", "run"):
        monkeypatch.setattr(subprocess, name, lambda *a, **k: pytest.fail("started a program"))
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 32\n%%EndComments\nshowpage\n")
    with pytest.raises(ImageError, match="not an image of the formats"):
        prepare_image(tmp_path / "a.jpg", tmp_path / "out.jpg", SIZE, SIZE, 95)


def test_images_above_the_limit_of_pixels_are_refused_before_decoding(tmp_path):
    source = tmp_path / "a.png"
    Image.new("1", (12_000, 12_000)).save(source)
    with pytest.raises(ImageError, match="12000x12000 pixels, more than the limit") as error:
        prepare_image(source, tmp_path / "out.jpg", (12_000, 12_000), SIZE, 95)
    assert error.value.reason == "too many pixels"
    small = save(tmp_path / "b.png", draw_image(*SIZE))
    with pytest.raises(ImageError, match="limit of 2,047"):
        prepare_image(small, tmp_path / "out.jpg", SIZE, SIZE, 95, max_pixels=2047)
    assert prepare_image(small, tmp_path / "out.png", SIZE, SIZE, 95, max_pixels=2048) == "linked"


@pytest.mark.parametrize("size", [SIZE, (32, 16), (128, 64)], ids=["linked", "shrunk", "enlarged"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("filler", [b"\xff\xd9", b"\0\0"], ids=["early end", "hole"])
def test_jpegs_that_decode_with_warnings_are_unreadable(tmp_path, size, progressive, filler, capfd):
    source = save(tmp_path / "a.jpg", draw_image(*SIZE), quality=95, progressive=progressive)
    data = source.read_bytes()
    middle, count = len(data) * 2 // 3, 40
    source.write_bytes(data[:middle] + filler * count + data[middle + len(filler) * count :])
    with pytest.raises(ImageError, match=str(source)) as error:
        prepare_image(source, tmp_path / "out.jpg", SIZE, size, 95)
    assert error.value.reason == "unreadable image"
    assert not (tmp_path / "out.jpg").exists()
    assert "Corrupt" not in capfd.readouterr().err


def test_bytes_after_the_end_of_a_jpeg_are_no_damage(tmp_path):
    source = save(tmp_path / "a.jpg", draw_image(*SIZE))
    source.write_bytes(source.read_bytes() + b"appended" * 20)
    assert prepare_image(source, tmp_path / "out.jpg", SIZE, (32, 16), 95) == "encoded"


@pytest.mark.parametrize(("exif", "upright"), [("auto", True), ("apply", True), ("ignore", False)])
@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_the_convention_decides_where_both_sizes_fit(tmp_path, exif, upright, suffix):
    tag = Image.Exif()
    tag[images.EXIF_ORIENTATION] = 3
    drawn = draw_image(*SIZE)
    source = save(tmp_path / f"a.{suffix}", drawn, exif=tag)
    assert images.exif_convention(source, SIZE) == "undecidable"
    prepare_image(source, tmp_path / "out.jpg", SIZE, SIZE, 95, exif=exif)
    assert difference(tmp_path / "out.jpg", drawn.rotate(180) if upright else drawn) < 6


def test_a_size_that_contradicts_the_convention_is_an_error(tmp_path):
    tag = Image.Exif()
    tag[images.EXIF_ORIENTATION] = 6
    source = save(tmp_path / "a.jpg", draw_image(*SIZE), exif=tag)
    for annotated, exif, convention in ((SIZE, "apply", "stored"), (SIZE[::-1], "ignore", "upright")):
        assert images.exif_convention(source, annotated) == convention
        with pytest.raises(ImageError, match="pixels, its annotation"):
            prepare_image(source, tmp_path / "out.jpg", annotated, annotated, 95, exif=exif)


def test_pillow_keeps_a_limit_for_images_that_are_opened_elsewhere(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    images.load_image(tmp_path / "a.png", (8, 8), (8, 8))
    assert Image.MAX_IMAGE_PIXELS == images.MAX_PIXELS


def test_an_image_in_memory_is_opened_with_the_same_limits_as_a_file():
    data = io.BytesIO()
    draw_image(*SIZE).save(data, "PNG")
    with images.open_image(io.BytesIO(data.getvalue())) as image:
        assert image.size == SIZE
    with pytest.raises(ImageError, match="image data: 64x32 pixels, more than the limit"):
        images.open_image(io.BytesIO(data.getvalue()), 100).__enter__()
    with pytest.raises(ImageError, match="image data: not an image of the formats"):
        images.open_image(io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0")).__enter__()


def test_only_one_function_opens_images():
    root = Path(coordexp.__file__).parent
    found = [path.relative_to(root).as_posix() for path in root.rglob("*.py") if "Image.open(" in path.read_text()]
    assert found == ["datasets/images.py"]
