"""Image files: open any common format, turn upright, resize, and encode at most once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Literal

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL import __version__ as pillow_version

from coordexp.datasets.jpeg import decode_jpeg, ends_with_marker
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.io import file_mode

EXIF_ORIENTATION = 0x0112
SIDEWAYS = 5  # orientations from 5 on swap width and height
UNDO = {6: 8, 8: 6}  # the inverse of an orientation; the others are their own inverse
DRAFT_SCALE = 2.0  # decode at a reduced DCT scale only if at least this many times the target remains
CHROMA = {0: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, 2: cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420}
SUFFIXES = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",)}
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # none that starts a program
MAX_PIXELS = 100_000_000  # decoding takes about 5 bytes per pixel, in every worker
Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # for images opened elsewhere; Pillow refuses more than twice as many
Exif = Literal["auto", "apply", "ignore"]
_NAME_BYTES = 255  # longest file name of Linux file systems
cv2.setNumThreads(1)  # the stage uses one process per core


class ImageError(Exception):
    """An image that cannot be used: `reason` is a key of the statistics, the text describes the problem."""

    def __init__(self, reason: str, text: str):
        super().__init__(text)
        self.reason = reason


def reuse_memory() -> None:
    """Let Pillow keep up to 8 freed blocks (16 MB each): allocating new pages costs as much as decoding a JPEG."""
    Image.core.set_blocks_max(8)


@contextlib.contextmanager
def open_image(source: str | Path | IO[bytes], max_pixels: int | None = MAX_PIXELS) -> Iterator[Image.Image]:
    """The image in a file of one of FORMATS, not yet decoded; any problem with it in the block is an ImageError.

    `source` is a path, or a binary file object, which stays open. No other function opens image files: Pillow would
    start programs for some formats, and decode images of any size.
    """
    Image.MAX_IMAGE_PIXELS = None  # `max_pixels` is the limit here
    name = source if isinstance(source, str | Path) else getattr(source, "name", "image data")
    try:
        # a handle, not a path: Pillow memory-maps some TIFFs opened by path, and swaps the sides of rotated ones
        with _opened(source) as handle, Image.open(handle, formats=FORMATS) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                text = f"{name}: {image.width}x{image.height} pixels, more than the limit of {max_pixels:,}"
                raise ImageError("too many pixels", f"{text} (data.max_pixels)")
            yield image
    except UnidentifiedImageError as error:
        raise ImageError("unreadable image", f"{name}: not an image of the formats {', '.join(FORMATS)}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError("unreadable image", f"{name}: {error}") from error
    finally:
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # also while another thread opens an image


def _opened(source: str | Path | IO[bytes]) -> contextlib.AbstractContextManager[IO[bytes]]:
    return Path(source).open("rb") if isinstance(source, str | Path) else contextlib.nullcontext(source)


def find_image(name: str, image_dirs: Sequence[str], from_url: bool = False) -> tuple[int, str]:
    """(index of the folder, path inside it) of the image called `name`.

    A name like `train2017/1.jpg` is first looked up as `1.jpg` in a folder called train2017. In a name that comes from
    a URL the folder is only such a hint. ImageError for a missing image, DataError for a name outside the folders.
    """
    parts = name.split("/")
    if not parts[0] or ".." in parts:
        expected = "a relative path inside the image folder"
        raise DataError(located("invalid file name", field="images.file_name", expected=expected, found=name))
    parent = parts[-2] if len(parts) > 1 else None
    same_name = [parent == folder.rstrip("/").rpartition("/")[2] for folder in image_dirs]
    for i in sorted(range(len(image_dirs)), key=lambda i: not same_name[i]):
        for inner in dict.fromkeys((name, parts[-1]) if same_name[i] or from_url else (name,)):
            if os.path.isfile(f"{image_dirs[i]}/{inner}"):
                return i, inner
    raise ImageError("missing image", f"{name} not found in {', '.join(image_dirs)}")


def output_name(inner: str, resized: bool, image_dir: str | Path) -> str:
    """File name of the written image `inner` of `image_dir`; different images have different names.

    JPEGs, and PNGs that are not resized, keep their name; others get `.jpg`, with a number if the folder already has an
    image of that name. Names that would be too long are shortened and get a hash.
    """
    suffix = f".{inner.rpartition('.')[2].lower()}"
    if suffix in SUFFIXES["JPEG"] or (suffix in SUFFIXES["PNG"] and not resized):
        return inner
    name, number = f"{inner}.jpg", 1
    while os.path.lexists(f"{image_dir}/{name}") or (number > 1 and os.path.lexists(f"{image_dir}/{name[:-4]}")):
        name, number = f"{inner}.{number}.jpg", number + 1
    folder, _, last = name.rpartition("/")
    if len(last.encode()) > _NAME_BYTES:
        stem = last.encode()[:200].decode(errors="ignore")
        name = f"{folder}/{stem}.{_digest(inner)}.jpg".removeprefix("/")
    return name


def exif_convention(source: str | Path, annotated: tuple[int, int]) -> str | None:
    """Which pixels the boxes of an image with an EXIF orientation refer to, by the annotated size.

    `upright` or `stored`, `undecidable` if both have the same size, None without an orientation.
    """
    with open_image(source, None) as image:
        if image.format == "PNG" and "exif" not in image.info:  # Pillow would decode it to look for the tag
            return None
        tag, upright = _tag(image), _upright_size(image)
    if tag == 1:
        return None
    if tag < SIDEWAYS or upright[0] == upright[1]:
        return "undecidable"
    return "upright" if upright == annotated else "stored"


def prepare_image(
    source: str | Path,
    target: str | Path,
    annotated: tuple[int, int],
    size: tuple[int, int],
    quality: int,
    *,
    exif: Exif = "auto",
    max_pixels: int | None = MAX_PIXELS,
) -> str:
    """Write `source` to `target` as an upright RGB image of `size` (width, height) in pixels.

    `annotated` is the size that the boxes refer to. A JPEG or PNG that needs no change is linked (copied across file
    systems); any other image is resampled once and encoded once. A target with the modification time of its source was
    made from it, and is kept. `exif`: whether boxes refer to the upright or to the stored pixels; `auto` decides by the
    annotated size, and for upright where both fit. Returns `linked`, `encoded` or `kept`. ImageError for an image that
    cannot be read without warnings, has more than `max_pixels`, or whose size differs from the annotated one.
    """
    source, target = Path(source), Path(target)
    if _is_up_to_date(target, source):
        return "kept"
    with open_image(source, max_pixels) as image:
        write = _encoder(image, source, target.suffix, _orientation(image, annotated, exif), size, quality)
    if write is None:
        _link(source, target)
        return "linked"
    _write(target, write, source.stat().st_mtime_ns)
    return "encoded"


def upright_size(source: str | Path | IO[bytes]) -> tuple[int, int]:
    """(width, height) in pixels of an image turned upright by its EXIF tag; ImageError if it cannot be read."""
    with open_image(source) as image:
        return _upright_size(image)


def load_image(source: str | Path | IO[bytes], annotated: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """The upright RGB pixels that `prepare_image` would encode, with the same arguments and errors."""
    with open_image(source) as image:
        return _resized(image, _orientation(image, annotated), size)


def upright_rgb(image: Image.Image) -> Image.Image:
    """The pixels of an opened image as RGB, turned upright by its EXIF tag, as in `load_image`."""
    size = _upright_size(image)
    return _resized(image, _orientation(image, size), size)


def _encoder(
    image: Image.Image, source: Path, suffix: str, orientation: int, size: tuple[int, int], quality: int
) -> Callable[[IO[bytes]], object] | None:
    """The function that writes the prepared image to a file; None for an image that needs no change."""
    complete = False
    if image.format in ("JPEG", "MPO") and not _is_enlarged(image, orientation, size):
        pixels = _decode_jpeg(source, cv2.IMREAD_REDUCED_GRAYSCALE_8)  # Pillow does not report damage
        complete = pixels is not None and ends_with_marker(source)
    if _is_final(image, orientation, size):
        if not complete:
            image.draft(image.mode, (image.width // 8, image.height // 8))
            image.load()  # detects a truncated file, whose header may be valid
        return None
    if (encoded := _enlarged(image, source, orientation, size, quality)) is not None:
        return lambda handle: handle.write(encoded)
    pixels = _resized(image, orientation, size)
    return lambda handle: _save(pixels, handle, suffix, quality)


def _is_up_to_date(target: Path, source: Path) -> bool:
    try:
        made = target.stat()
    except FileNotFoundError:
        return False
    return made.st_size > 0 and made.st_mtime_ns == source.stat().st_mtime_ns


def _orientation(image: Image.Image, annotated: tuple[int, int], exif: Exif = "auto") -> int:
    """EXIF orientation 1..8 to apply to the loaded pixels; the tag is ignored if the unrotated size was annotated.

    Pillow turns a TIFF upright while loading it and reports its upright size before: either nothing remains to be
    applied, or the inverse.
    """
    tag, upright = _tag(image), _upright_size(image)
    loaded_upright = image.format == "TIFF"
    stored = upright[::-1] if tag >= SIDEWAYS else upright
    if upright == annotated and exif != "ignore":
        return 1 if loaded_upright else tag
    if stored == annotated and exif != "apply":
        return UNDO.get(tag, tag) if loaded_upright else 1
    detail = f"the file has {upright[0]}x{upright[1]} pixels, its annotation {annotated[0]}x{annotated[1]}"
    raise ImageError("size differs from the annotation", detail)


def _tag(image: Image.Image) -> int:
    """The EXIF orientation 1..8 in the file, 1 if it has none; must be called before the pixels are loaded."""
    tag = image.getexif().get(EXIF_ORIENTATION, 1)
    return tag if tag in range(1, 9) else 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    return image.size[::-1] if _tag(image) >= SIDEWAYS and image.format != "TIFF" else image.size


def _is_final(image: Image.Image, orientation: int, size: tuple[int, int]) -> bool:
    plain = image.format in SUFFIXES and image.mode == "RGB" and "transparency" not in image.info
    tagged = image.getexif().get(EXIF_ORIENTATION, 1) != 1  # viewers would rotate it
    single = getattr(image, "n_frames", 1) == 1
    return plain and single and orientation == 1 and not tagged and image.size == size


def _enlarged(
    image: Image.Image, source: Path, orientation: int, size: tuple[int, int], quality: int
) -> np.ndarray | None:
    """The encoded bytes of an ordinary JPEG that is enlarged, by OpenCV alone; None for any other image.

    The pixels and bytes are those of `_resized` and `_save`. Also None for a file that OpenCV cannot decode: Pillow
    then explains why.
    """
    if not _is_enlarged(image, orientation, size):
        return None
    pixels = _decode_jpeg(source, cv2.IMREAD_COLOR)  # [H, W, 3], BGR
    if pixels is None:
        return None
    large = cv2.resize(pixels, size, dst=_canvas(size), interpolation=cv2.INTER_CUBIC)
    chroma = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, CHROMA[subsampling(quality)])
    return cv2.imencode(".jpg", large, [cv2.IMWRITE_JPEG_QUALITY, quality, *chroma])[1]


def _is_enlarged(image: Image.Image, orientation: int, size: tuple[int, int]) -> bool:
    grows = size != image.size and size[0] >= image.width and size[1] >= image.height
    return image.format == "JPEG" and image.mode == "RGB" and orientation == 1 and grows


def _decode_jpeg(source: Path, mode: int) -> np.ndarray | None:
    """The stored pixels by OpenCV, None if it cannot decode the file; ImageError if it is damaged."""
    pixels, damage = decode_jpeg(source, mode)
    if damage:
        raise ImageError("unreadable image", f"{source}: {damage}")
    return pixels


def _resized(image: Image.Image, orientation: int, size: tuple[int, int]) -> Image.Image:
    raw_size = (size[1], size[0]) if orientation >= SIDEWAYS else size
    draft_size = (int(raw_size[0] * DRAFT_SCALE), int(raw_size[1] * DRAFT_SCALE))
    if image.format == "JPEG" and image.mode in ("RGB", "L"):
        image.draft(image.mode, draft_size)
    pixels = _rgb(image)
    if pixels.size != raw_size:
        pixels = resample(pixels, raw_size)
    if orientation != 1:
        pixels.getexif()[EXIF_ORIENTATION] = orientation
        pixels = ImageOps.exif_transpose(pixels)
    return pixels


def resample(pixels: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`pixels` (RGB) resized to `size` (width, height) by bicubic interpolation.

    OpenCV enlarges, as it is faster; Pillow shrinks, as OpenCV does not smooth first.
    """
    if size[0] < pixels.width or size[1] < pixels.height:
        return pixels.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    out = _canvas(size)
    cv2.resize(np.asarray(pixels), size, dst=out, interpolation=cv2.INTER_CUBIC)
    return Image.fromarray(out)  # copies


@functools.lru_cache(maxsize=8)
def _canvas(size: tuple[int, int]) -> np.ndarray:
    """A reused buffer [H, W, 3]: most images of a dataset have one of a few sizes."""
    return np.empty((size[1], size[0], 3), dtype=np.uint8)


def resampler_version() -> str:
    """The versions of the libraries that resample: other versions may differ by a grey level."""
    return f"opencv {cv2.__version__}, pillow {pillow_version}"


def subsampling(quality: int) -> int:
    """Pillow's code for the chroma subsampling: 4:2:0, as in nearly all sources; 4:4:4 from quality 96 on."""
    return 2 if quality < 96 else 0


def _rgb(image: Image.Image) -> Image.Image:
    """The first frame as RGB: 16-bit values scaled down, transparency on white."""
    image.seek(0)
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith("I") or image.mode == "F":
        high = image.getextrema()[1]
        scale = 255 / 65535 if image.mode.startswith("I") and high > 255 else 255 / high if 0 < high <= 1 else 1.0
        return image.convert("F").point(lambda v: v * scale).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layered = image.convert("RGBA")
        canvas = Image.new("RGBA", layered.size, "white")
        canvas.alpha_composite(layered)
        return canvas.convert("RGB")
    return image.convert("RGB")


def _save(pixels: Image.Image, handle: IO[bytes], suffix: str, quality: int) -> None:
    if suffix.lower() == ".png":
        pixels.save(handle, "PNG", compress_level=1)
    else:
        pixels.save(handle, "JPEG", quality=quality, subsampling=subsampling(quality))


def _write(target: Path, write: Callable[[IO[bytes]], object], modified: int) -> None:
    """Write to a temporary file and rename it, without fsync: a lost image is simply converted again.

    modified: modification time of the source in nanoseconds, which becomes that of the target.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fd, scratch = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(fd, "wb") as handle:
            write(handle)
        Path(scratch).chmod(file_mode())
        os.utime(scratch, ns=(modified, modified))
        Path(scratch).replace(target)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def _link(source: Path, target: Path) -> None:
    """Hard-link, or copy if the file system does not allow it; atomic in both cases."""
    original = source.resolve() if source.is_symlink() else source
    with contextlib.suppress(OSError):  # the folder is missing, the target exists, or links are impossible
        os.link(original, target)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = target.with_name(f".{_digest(target.name)}.{os.getpid()}.part")
    scratch.unlink(missing_ok=True)
    try:
        os.link(original, scratch)
    except OSError:
        shutil.copyfile(source, scratch)
        shutil.copystat(source, scratch)
    scratch.replace(target)
    scratch.unlink(missing_ok=True)  # renaming a hard link to another link of the same file does nothing


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
