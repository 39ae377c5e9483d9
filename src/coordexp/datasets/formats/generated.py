"""What the generated datasets share: the options of a split override those of the dataset, and no file is read."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import msgspec

from coordexp.datasets.formats.base import DatasetFormat, SplitFiles

Dataset = TypeVar("Dataset", bound=msgspec.Struct)


def overrides_of(options: type[msgspec.Struct], name: str) -> type[msgspec.Struct]:
    """A struct called `name` with the fields of `options`, all null by default."""
    return msgspec.defstruct(
        name,
        [(field.name, field.type | None, None) for field in msgspec.structs.fields(options)],
        frozen=True,
        kw_only=True,
        forbid_unknown_fields=True,
        module=options.__module__,
        namespace={"__doc__": "Options of one split; null takes the value of the dataset."},
    )


class GeneratedFormat(DatasetFormat[Dataset]):
    """A dataset whose images are generated from `SplitOptions`; the overrides of its splits are in `options.splits`."""

    SplitOptions: ClassVar[type[msgspec.Struct]]

    def files(self, split: str) -> SplitFiles:
        """None: the images are generated."""
        return SplitFiles()

    def split_options(self, split: str) -> Any:
        """The `SplitOptions` of `split`, over those of the dataset."""
        own = {name: getattr(self.options, name) for name in self.SplitOptions.__struct_fields__}
        changed = msgspec.structs.asdict(self.options.splits[split])
        return self.SplitOptions(**own | {name: value for name, value in changed.items() if value is not None})
