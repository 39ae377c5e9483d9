"""The interface of a dataset format, and the registry of formats.

A format turns the files of one split, in whatever form they come, into one annotation file in COCO format, which
conversion and evaluation both read. A format is one class in one file, a module of this package or a plug-in:

    @FORMATS.register("lines")
    class LinesFormat(DatasetFormat[LinesOptions]):
        Options = LinesOptions

        def files(self, split):
            return SplitFiles(annotations=(self.options.lists[split],), image_dirs=("images",))

        def provide(self, split, folder, raw_dir):
            with AnnotationWriter(self.annotation_path(split, raw_dir)) as writer:
                ...
            return self.source(split, writer.path, [folder / "images"])
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, NamedTuple, TypeVar

import msgspec

from coordexp.datasets.fetch import DownloadEntry
from coordexp.datasets.folder_listing import FolderListing
from coordexp.datasets.source import OnBad, Source
from coordexp.runtime.config_io import convert, unwrap
from coordexp.runtime.errors import ConfigError, located
from coordexp.runtime.io import sha256_file
from coordexp.runtime.registry import Registry

T = TypeVar("T")
PerSplit = Annotated[dict[str, T], msgspec.Meta(extra={"per_split": True})]  # an option with one value per split
ImageDirs = Annotated[PerSplit[list[str]], msgspec.Meta(description="folders of images of each split")]


class SplitFiles(NamedTuple):
    """What a split reads, as paths relative to the folder of the dataset.

    annotations: files and folders that the annotations are read from; a change to one of them changes the dataset.
    image_dirs: folders of images.
    """

    annotations: tuple[str, ...] = ()
    image_dirs: tuple[str, ...] = ()


class DerivedSplit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A split that is drawn from another one at random, by image or by group of images."""

    source: Annotated[
        str,
        msgspec.Meta(description="split that the images are drawn from; it keeps the others"),
    ] = "train"
    fraction: Annotated[
        float, msgspec.Meta(gt=0, lt=1, description="fraction of the images of `source` that are drawn")
    ] = 0.1
    seed: Annotated[int, msgspec.Meta(description="seed of the selection")] = 17
    group: Annotated[
        str | None,
        msgspec.Meta(
            description="keeps images of one group together: a regular expression with one capture group, searched for "
            "in the file name, for example `^(scene\\d+)_`; an image without a match forms its own group"
        ),
    ] = None
    group_key: Annotated[
        str | None,
        msgspec.Meta(
            description="keeps images of a group together: a key of the entries of `images` in the annotation file, "
            "for example `video_id`"
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.group is not None and self.group_key is not None:
            raise ValueError("group and group_key are mutually exclusive")
        if self.group is not None:
            try:
                groups = re.compile(self.group).groups
            except re.error as error:
                raise ValueError(f"group: not a regular expression: {error}") from error
            if groups != 1:
                raise ValueError(f"group: expected one group in parentheses, found {groups} in {self.group!r}")


class FolderOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of every format that reads files."""

    root: Annotated[
        str | None,
        msgspec.Meta(description="folder of an existing copy of the dataset; null: download the files"),
    ] = None
    downloads: Annotated[
        dict[str, DownloadEntry] | None,
        msgspec.Meta(description="download source of each file or folder, by its path in the dataset"),
    ] = None
    derived_splits: Annotated[
        dict[str, DerivedSplit],
        msgspec.Meta(description="splits that the dataset lacks, by name, each drawn from another split"),
    ] = {}


class ConvertedOptions(FolderOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of every format whose files are converted to an annotation file."""

    on_bad: Annotated[
        OnBad,
        msgspec.Meta(
            description="an invalid image, box or line in the dataset's own files: `error`, or `skip` (left out, "
            "counted and listed in the conversion statistics)"
        ),
    ] = "error"


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """A way to read a folder.

    options: the dataset's entry under `datasets:` without `format` and `root`; values of per-split options are named by
        role (`train`, `val`, `test`) where the folder says so.
    evidence: what the format was recognised by, `train/_annotations.coco.json` for example.
    """

    options: dict[str, Any]
    evidence: str


Options = TypeVar("Options", bound=msgspec.Struct)


class DatasetFormat(ABC, Generic[Options]):
    """A format of annotations, configured for one dataset.

    dataset: name of the dataset. name: the format's name in FORMATS. options: the dataset's entry in the
    configuration. `federated` is as in `Source`.
    """

    Options: ClassVar[type[msgspec.Struct]]
    federated: ClassVar[bool] = False

    @classmethod
    def detect(cls, listing: FolderListing) -> list[Proposal]:
        """How a folder can be read in this format: nothing if it is another one, several proposals if it is ambiguous.

        Names of files and their first bytes decide; nothing is guessed. `coordexp init` lists several proposals for the
        user to choose from.
        """
        return []

    def __init__(self, dataset: str, name: str, options: Options):
        self.dataset, self.name, self.options = dataset, name, options

    @abstractmethod
    def files(self, split: str) -> SplitFiles:
        """The files that `split` reads; none for a generated dataset. `split` is known to exist."""

    @abstractmethod
    def provide(self, split: str, folder: Path, raw_dir: Path) -> Source:
        """The source of `split`, with absolute paths.

        `folder` holds the files named by `files`. What the format writes goes to `raw_dir`, complete or not at all.
        DataError for a file that cannot be read at all; single bad items go to `AnnotationWriter.skip`.
        """

    def original_files(self, split: str, folder: Path) -> Sequence[Path]:
        """The user's files and folders in `folder` that the annotations of `split` are read from.

        A change to one of them changes the dataset. A format overrides this if a file names the others.
        """
        return [folder / path for path in self.files(split).annotations]

    def annotation_path(self, split: str, raw_dir: Path) -> Path:
        """Where a format writes the annotations of a split that it converts."""
        return raw_dir / f"{split}.annotations.json"

    def source(self, split: str, annotations: Path, image_dirs: Sequence[Path]) -> Source:
        """The Source for this annotation file and these folders of images."""
        return Source(
            dataset=self.dataset,
            split=split,
            format=self.name,
            federated=self.federated,
            annotations=str(annotations.resolve()),
            image_dirs=[str(folder.resolve()) for folder in image_dirs],
            annotations_sha256=sha256_file(annotations),
        )


class AnnotationFileFormat(DatasetFormat[Options]):
    """A format with the options `annotations` and `image_dirs`: per split, an annotation file and folders of images."""

    def files(self, split: str) -> SplitFiles:
        """The annotation file and the folders of images of `split`."""
        return SplitFiles((self.options.annotations[split],), tuple(self.options.image_dirs[split]))


FORMATS: Registry[type[DatasetFormat]] = Registry("dataset format")


def open_format(dataset: str, entry: Mapping[str, Any]) -> DatasetFormat:
    """The format of a dataset, by its entry under `datasets:`; ConfigError for an invalid entry."""
    field = f"datasets.{dataset}"
    name = entry.get("format")
    if name is None:
        raise ConfigError(located("required key is missing", field=f"{field}.format", expected=FORMATS.names()))
    if name not in FORMATS:
        fix = "choose a registered format, or load a plug-in that registers it"
        facts = {"expected": FORMATS.names(), "found": name, "fix": fix}
        raise ConfigError(located("unknown dataset format", field=f"{field}.format", **facts))
    kind = FORMATS[name]
    options = convert({key: value for key, value in entry.items() if key != "format"}, kind.Options, field=field)
    dataset_format = kind(dataset, name, options)
    _check_derived_splits(dataset_format)
    return dataset_format


def derived_splits(dataset_format: DatasetFormat) -> Mapping[str, DerivedSplit]:
    """The splits that are drawn from others, by name; none for a generated dataset."""
    return getattr(dataset_format.options, "derived_splits", {})


def original_split(dataset_format: DatasetFormat, split: str) -> str:
    """The split of the user's files that the images of `split` come from: itself, unless it is drawn from another."""
    derived = derived_splits(dataset_format).get(split)
    return derived.source if derived else split


def known_splits(dataset_format: DatasetFormat) -> list[str]:
    """Names of all splits of a dataset."""
    values = [getattr(dataset_format.options, name) for name in per_split_options(dataset_format.Options)]
    return list(dict.fromkeys([name for splits in values for name in splits] + list(derived_splits(dataset_format))))


def check_split(dataset_format: DatasetFormat, split: str) -> None:
    """ConfigError if a per-split option of the dataset has no value for `split`, or for its source."""
    original = original_split(dataset_format, split)
    for name in per_split_options(dataset_format.Options):
        values = getattr(dataset_format.options, name)
        if original not in values:
            dataset = f"datasets.{dataset_format.dataset}"
            known = sorted({*values, *derived_splits(dataset_format)})
            fix = f"add {dataset}.{name}.{original}; ask for another split (predict.split, data.splits), or name the "
            fix += f"one with this role (data.roles); or derive it from another: {dataset}.derived_splits.{original}"
            raise ConfigError(
                located("no such split", field=f"{dataset}.{name}", expected=known, found=original, fix=fix)
            )


def _check_derived_splits(dataset_format: DatasetFormat) -> None:
    """ConfigError for a derived split that the dataset already has, or whose source it lacks."""
    derived = derived_splits(dataset_format)
    field = f"datasets.{dataset_format.dataset}.derived_splits"
    for name in per_split_options(dataset_format.Options):
        values = getattr(dataset_format.options, name)
        for split, options in derived.items():
            if split in values:
                fix = "remove it, or give the derived split another name"
                raise ConfigError(located("the dataset has this split already", field=f"{field}.{split}", fix=fix))
            if options.source not in values:
                facts = {"expected": sorted(values), "found": options.source}
                raise ConfigError(located("no such split", field=f"{field}.{split}.source", **facts))
    for source in {options.source for options in derived.values()}:
        total = sum(options.fraction for options in derived.values() if options.source == source)
        if total >= 1:
            problem = f"nothing would remain of the split {source!r}"
            raise ConfigError(located(problem, field=field, expected="fractions below 1 in total", found=total))


def per_split_options(options: type[msgspec.Struct]) -> list[str]:
    """Names of the options that have one value per split."""
    fields = msgspec.structs.fields(options)
    return [
        field.name for field in fields if any((meta.extra or {}).get("per_split") for meta in unwrap(field.type)[1])
    ]
