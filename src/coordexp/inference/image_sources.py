"""The images to detect objects in: paths, folders, URLs, PIL images and arrays, in one form."""

from __future__ import annotations

import http.client
import io
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image

from coordexp import __version__
from coordexp.datasets.folder_listing import IMAGE_SUFFIXES
from coordexp.datasets.images import ImageError, load_image, resample, upright_rgb, upright_size
from coordexp.runtime.errors import ConfigError, DataError, DownloadError, located
from coordexp.runtime.http_download import check_url, shown_url

ImageInput: TypeAlias = "str | Path | Image.Image | np.ndarray | ImageSource"
URL_PREFIXES = ("http://", "https://")
MAX_URL_BYTES = 100 << 20
URL_TIMEOUT = 30.0  # seconds without data


@dataclass(frozen=True)
class ImageSource:
    """One image.

    name: path or URL, or `image N` for the N-th input if that is pixels. size: (width, height) in pixels, after EXIF
    rotation. load: the upright RGB image in a given size; may be called several times, in any thread.
    """

    name: str
    size: tuple[int, int]
    load: Callable[[tuple[int, int]], Image.Image]


def image_sources(images: ImageInput | Iterable[ImageInput], *, allow_urls: bool = False) -> list[ImageSource]:
    """One source per image, in order; a folder becomes the images directly in it, sorted by name.

    images: one input or several. Arrays are uint8, [H, W], [H, W, 3] (RGB) or [H, W, 4] (RGBA). URLs are downloaded if
        `allow_urls`.

    Reads the header of each file, but not its pixels. DataError that names the image if one cannot be read.
    """
    single = isinstance(images, str | Path | Image.Image | np.ndarray | ImageSource)
    inputs: Iterable[ImageInput] = [images] if single else images  # type: ignore[assignment, list-item]
    found = [source for n, given in enumerate(inputs) for source in _sources(given, n, allow_urls)]
    if not found:
        raise DataError(located("no image given", fix="pass at least one image, or a folder with images"))
    return found


def _sources(given: ImageInput, n: int, allow_urls: bool) -> Iterator[ImageSource]:
    if isinstance(given, ImageSource):
        yield given
    elif isinstance(given, str) and given.lower().startswith(URL_PREFIXES):
        if not allow_urls:
            fix = "pass allow_urls=True to download images"
            raise ConfigError(located("the image is a URL, and downloads are off", found=shown_url(given), fix=fix))
        yield _encoded(partial(io.BytesIO, _downloaded(given)), shown_url(given))
    elif isinstance(given, str | Path):
        path = Path(given)
        for file in _images_in(path) if path.is_dir() else [path]:
            yield _encoded(partial(Path, file), str(file))
    else:
        name = f"image {n + 1}"
        image = given if isinstance(given, Image.Image) else _from_array(given, name)
        yield _in_memory(image, name)


def _images_in(folder: Path) -> list[Path]:
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith("."))
    if not files:
        expected = f"files that end in {', '.join(sorted(IMAGE_SUFFIXES))}"
        raise DataError(located("no images in the folder", file=folder, expected=expected))
    return files


def _encoded(opened: Callable[[], Path | io.BytesIO], name: str) -> ImageSource:
    """An image in a file, or in a buffer with the content of one."""
    try:
        size = upright_size(opened())
    except ImageError as error:
        raise _unreadable(name, error) from error
    return ImageSource(name, size, partial(_load, opened, name, size))


def _load(
    opened: Callable[[], Path | io.BytesIO], name: str, upright: tuple[int, int], size: tuple[int, int]
) -> Image.Image:
    try:
        return load_image(opened(), upright, size)
    except ImageError as error:
        raise _unreadable(name, error) from error


def _in_memory(image: Image.Image, name: str) -> ImageSource:
    try:
        pixels = upright_rgb(image)
    except (OSError, SyntaxError, ValueError) as error:  # of a file that Pillow has opened, but not yet decoded
        raise _unreadable(name, error) from error
    return ImageSource(name, pixels.size, partial(_resized, pixels))


def _resized(pixels: Image.Image, size: tuple[int, int]) -> Image.Image:
    return pixels if size == pixels.size else resample(pixels, size)


def _from_array(array: object, name: str) -> Image.Image:
    expected = "a path, a PIL image, or a uint8 array [H, W], [H, W, 3] (RGB) or [H, W, 4] (RGBA)"
    if not isinstance(array, np.ndarray):
        raise DataError(located("not an image", file=name, expected=expected, found=type(array).__name__))
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shaped or array.size == 0:
        found = f"{array.dtype} {list(array.shape)}"
        fix = "scale the values to 0..255, convert them to uint8 and move the channels last"
        raise DataError(located("not an image", file=name, expected=expected, found=found, fix=fix))
    return Image.fromarray(array)


def _downloaded(url: str) -> bytes:
    check_url(url)
    request = urllib.request.Request(url, headers={"User-Agent": f"coordexp/{__version__}"})
    try:
        with urllib.request.urlopen(request, timeout=URL_TIMEOUT) as response:
            content = response.read(MAX_URL_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(located(f"cannot download the image: {error}", file=shown_url(url))) from error
    if len(content) > MAX_URL_BYTES:
        expected = f"at most {MAX_URL_BYTES:,} bytes"
        raise DownloadError(located("the image is too large to download", file=shown_url(url), expected=expected))
    return content


def _unreadable(name: str | Path, error: Exception) -> DataError:
    return DataError(located(f"cannot read the image: {error}", file=name, fix="pass a readable image file"))
