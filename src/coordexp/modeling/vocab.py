"""Coordinate tokens in a checkpoint: adding them, checking them, and looking up their ids."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import msgspec

from coordexp.modeling import checksums
from coordexp.modeling import embedding_init as rows
from coordexp.modeling import safetensors_io as shards
from coordexp.modeling.base_checks import Table, check_base, embedding_tables, embedding_tensors
from coordexp.modeling.checkpoint_config import read_object, read_tokenizer
from coordexp.modeling.checkpoint_files import own_files, weights_identity
from coordexp.modeling.checkpoint_safety import check_checkpoint, library_errors
from coordexp.modeling.families import family_of
from coordexp.modeling.parallel_writer import Output
from coordexp.records import COORD_BINS, WILDCARD_TOKEN, coord_token, coord_tokens
from coordexp.runtime import io
from coordexp.runtime.code_identity import code_identity
from coordexp.runtime.errors import ModelError, located
from coordexp.runtime.estimates import announce_shards
from coordexp.runtime.output_guard import MARKER, output_dir, refuse_foreign_folder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

COORD_FILE = "coord_tokens.json"

_OWN = {COORD_FILE, MARKER, checksums.FILE_NAME}  # files of every expanded checkpoint
_REWRITTEN = {"config.json", "tokenizer.json", "tokenizer_config.json", "added_tokens.json", *_OWN}
_WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth"}
_PROBE = 'Detect every object: {"objects": [{"desc": "Café 42", "bbox_2d": [<|coord_0|>, <|coord_999|>]}]}<|im_end|>\n'


class CoordIds(msgspec.Struct, frozen=True):
    """Token ids: bins 0..999 are `start`..`end` (inclusive, contiguous), `wildcard` is `<|coord_*|>`."""

    start: int
    end: int
    wildcard: int

    def id_of(self, k: int) -> int:
        """Id of bin `k`."""
        return self.start + k


def coord_ids(tokenizer_or_dir: Any) -> CoordIds:
    """Ids of the coordinate tokens; ModelError unless all exist and are contiguous.

    Accepts a folder with `tokenizer.json`, a `tokenizers.Tokenizer`, a Hugging Face tokenizer, or a processor.
    """
    if isinstance(tokenizer_or_dir, str | Path):
        vocab, where = _entries(read_tokenizer(_tokenizer_file(tokenizer_or_dir))), tokenizer_or_dir
    else:
        tokenizer = getattr(tokenizer_or_dir, "tokenizer", tokenizer_or_dir)
        vocab, where = tokenizer.get_vocab(), type(tokenizer).__name__
    return _contiguous(vocab, where)


def tokenizer_sha256(folder: str | Path) -> str:
    """SHA-256 of a tokenizer's behaviour: entries, merges, added tokens with ids, and the ids of a probe text.

    It does not change when the tokenizer is saved again with other white space or by another library version.
    """
    path = _tokenizer_file(folder)
    return _sha256(read_tokenizer(path), _tokenizer(path))


def check_tokenizer(folder: str | Path, expected: dict | str | Path) -> CoordIds:
    """The coordinate ids of `folder`; ModelError if its ids or tokenizer differ from the expected ones.

    `expected` is the content of a `coord_tokens.json`, the path of one, or a checkpoint folder that contains one.
    """
    if not isinstance(expected, dict):
        path = Path(expected)
        expected = read_object(path / COORD_FILE if path.is_dir() else path)
    ids = coord_ids(folder)
    for field in ("start", "end", "wildcard"):
        if getattr(ids, field) != expected.get(field):
            fix = "train, merge and predict must use the checkpoint that expand_vocab wrote"
            facts = {"field": field, "expected": expected.get(field), "found": getattr(ids, field), "fix": fix}
            raise ModelError(located("coordinate ids differ", file=folder, **facts))
    found = tokenizer_sha256(folder)
    want = expected.get("tokenizer_sha256")
    if found != want:
        fix = "train, merge and predict must use the tokenizer of the checkpoint that expand_vocab wrote"
        raise ModelError(
            located("the tokenizer differs", file=folder, field="sha256", expected=want, found=found, fix=fix)
        )
    return ids


def verified_ids(folder: str | Path) -> CoordIds:
    """`coord_ids` of a checkpoint folder; ModelError if its tokenizer is not the one recorded in coord_tokens.json."""
    if (Path(folder) / COORD_FILE).exists():
        return check_tokenizer(folder, folder)
    return coord_ids(folder)


def expand(base_dir: str | Path, out_dir: str | Path, init: rows.Init = "numeric") -> dict:
    """Write `base_dir` with the 1,001 coordinate tokens added to `out_dir`; returns the content of coord_tokens.json.

    Only the shards with the embedding table (and an untied output layer) are rewritten, in blocks; other shards are
    hard-linked, or copied where links are impossible, and other files are copied. Dtypes, tying and the division into
    shards stay the same. A checkpoint that already has the tokens is passed through unchanged, with
    `already_expanded: true`. ModelError for an unsuitable checkpoint.
    """
    base, out = Path(base_dir), Path(out_dir)
    if init not in get_args(rows.Init):
        raise ModelError(
            located("unknown initialisation", field="vocab.init", expected=get_args(rows.Init), found=init)
        )
    if out.resolve() != base.resolve():
        refuse_foreign_folder(out, "expand")
    check_checkpoint(base)
    sha256 = checksums.verify_checksums(base)
    checkpoint = shards.open_checkpoint(base)
    check_base(checkpoint, family_of(base), read_object(base / "config.json"))
    tokenizer = read_tokenizer(_tokenizer_file(base))
    known = _next_id(tokenizer)
    present = {t["content"] for t in tokenizer["added_tokens"]} & {WILDCARD_TOKEN, *coord_tokens()}
    if len(present) == 1 + COORD_BINS:
        return _link_expanded(base, out, sha256)
    if present:
        fix = "start from the original checkpoint"
        raise ModelError(located(f"only {len(present)} coordinate tokens are present", file=base, fix=fix))
    tables = _tables(checkpoint)
    old_rows = next(iter(tables.values()))[1].shape[0]
    new_rows = max(old_rows, known + 1 + COORD_BINS)
    _announce(base, out, checkpoint, tables, new_rows)
    with output_dir(out, "expand") as folder:
        for file in _other_files(base, report=True):
            shards.link_or_copy(file, folder / file.name)
        _write_tokenizer_files(base, folder, tokenizer, known)
        io.write_json(folder / "config.json", _config(checkpoint, old_rows, new_rows))
        with rows.single_threaded_torch(), shards.workers() as pool:
            written = _write_weights(checkpoint, folder, tables, new_rows, known, tokenizer, init, pool)
        facts = _facts(folder, new_rows, init) | _origin(base)
        io.write_json(folder / COORD_FILE, facts)
        linked = {name: sha256[name] for name in checkpoint.shards.keys() & sha256.keys()}
        checksums.write_checksums(folder, linked | written)
    return facts


def check(folder: str | Path) -> dict:
    """Recompute the content of coord_tokens.json for an expanded checkpoint; ModelError if a check fails.

    The checks: all tokens exist, with contiguous ids inside the embedding table, whose size is `vocab_size`; each token
    is encoded as one id within an answer, and decoding restores the answer; ids and tokenizer are the recorded ones.
    """
    folder = check_checkpoint(folder)
    checksums.verify_checksums(folder)
    return _check(folder)


def _check(folder: Path) -> dict:
    table_rows = next(iter(_tables(shards.open_checkpoint(folder)).values()))[1].shape[0]
    facts = _facts(folder, table_rows, None)
    if facts["end"] >= table_rows:
        fix = "only the tokenizer has the tokens: expand the original checkpoint"
        problem = "coordinate ids are outside the embedding table"
        raise ModelError(located(problem, file=folder, expected=f"< {table_rows}", found=facts["end"], fix=fix))
    _resized(read_object(folder / "config.json"), table_rows, table_rows)
    recorded = folder / COORD_FILE
    if recorded.exists():
        check_tokenizer(folder, recorded)
        facts["init"] = read_object(recorded).get("init")
    return facts


def _contiguous(vocab: dict[str, int], where: str | Path) -> CoordIds:
    missing = [token for token in (WILDCARD_TOKEN, *coord_tokens()) if token not in vocab]
    if missing:
        fix = "expand the vocabulary first (rule expand_vocab)"
        problem = f"{len(missing)} of {COORD_BINS + 1} coordinate tokens are missing, the first is {missing[0]}"
        raise ModelError(located(problem, file=where, fix=fix))
    start = vocab[coord_token(0)]
    for k in range(COORD_BINS):
        if vocab[coord_token(k)] != start + k:
            fix = "this tokenizer was not written by expand_vocab: expand the original checkpoint again"
            problem = "coordinate ids are not contiguous"
            found = vocab[coord_token(k)]
            raise ModelError(
                located(problem, file=where, field=coord_token(k), expected=start + k, found=found, fix=fix)
            )
    return CoordIds(start=start, end=start + COORD_BINS - 1, wildcard=vocab[WILDCARD_TOKEN])


def _sha256(content: dict, tokenizer: Tokenizer) -> str:
    merges = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    added = sorted((token["id"], token["content"]) for token in content["added_tokens"])
    added_ids = {i for i, _ in added}
    entries = {text: i for text, i in content["model"]["vocab"].items() if i not in added_ids}
    probe = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    facts = {"entries": entries, "merges": merges, "added": added, "probe": probe}
    return hashlib.sha256(msgspec.json.encode(facts, order="deterministic")).hexdigest()


def _facts(folder: Path, table_rows: int, init: str | None) -> dict:
    content = read_tokenizer(_tokenizer_file(folder))
    tokenizer = _tokenizer(folder / "tokenizer.json")
    ids = _contiguous(_entries(content), folder)
    _check_encoding(tokenizer, folder, ids)
    return {
        "wildcard": ids.wildcard,
        "start": ids.start,
        "end": ids.end,
        "tokenizer_length": _next_id(content),
        "vocab_size": table_rows,
        "tokenizer_sha256": _sha256(content, tokenizer),
        "init": init,
        "already_expanded": init is None,
    }


def _origin(base: Path) -> dict:
    """Identity of the base and of the code, by which readers of coord_tokens.json notice changed weights."""
    return {"base": weights_identity(base), "code": code_identity(__name__)}


def _link_expanded(base: Path, out: Path, sha256: dict[str, str]) -> dict:
    facts = _check(base) | _origin(base)
    ids = f"{facts['start']}..{facts['end']}"
    print(f"expand: {base} already has the coordinate tokens ({ids})", file=sys.stderr, flush=True)
    if out.resolve() != base.resolve():
        files = [file for file in own_files(base, "expand") if file.name not in _OWN]
        weights = [file for file in files if file.suffix == ".safetensors"]
        copied = sum(file.stat().st_size for file in files if file not in weights)
        announce_shards("expand", out, {}, weights, copied)
        with output_dir(out, "expand") as folder:
            for file in files:
                shards.link_or_copy(file, folder / file.name)
            io.write_json(folder / COORD_FILE, facts)
            checksums.write_checksums(folder, {file.name: sha256[file.name] for file in files if file.name in sha256})
    return facts


def _announce(base: Path, out: Path, checkpoint: shards.Checkpoint, tables: dict, new_rows: int) -> None:
    written, linked = {}, []
    for name, shard in checkpoint.shards.items():
        specs = [spec for spec in shard.tensors.values() if spec.name in tables]
        if specs:
            growth = sum((new_rows - spec.shape[0]) * (spec.nbytes // spec.shape[0]) for spec in specs)
            written[name] = shard.path.stat().st_size + growth
        else:
            linked.append(shard.path)
    others = sum(file.stat().st_size for file in _other_files(base))
    others += sum((base / name).stat().st_size for name in _REWRITTEN if (base / name).exists())
    announce_shards("expand", out, written, linked, others)


def _check_encoding(tokenizer: Tokenizer, folder: Path, ids: CoordIds) -> None:
    """Check that each coordinate token is one id within an answer, and that decoding restores the text."""
    text = '{"objects": [{"desc": "cat", "poly": [' + ", ".join(coord_tokens()) + "]}]}"
    encoded = tokenizer.encode(text, add_special_tokens=False).ids
    found = [i for i in encoded if ids.start <= i <= ids.end]
    if found != list(range(ids.start, ids.end + 1)):
        raise ModelError(located("coordinate tokens are not encoded as one id each within an answer", file=folder))
    if tokenizer.decode(encoded, skip_special_tokens=True) != text:
        raise ModelError(located("encoding and decoding an answer changes it", file=folder))
    if tokenizer.encode(WILDCARD_TOKEN, add_special_tokens=False).ids != [ids.wildcard]:
        raise ModelError(located(f"{WILDCARD_TOKEN} is not encoded as one id", file=folder))


def _tables(checkpoint: shards.Checkpoint) -> dict[str, Table]:
    config = read_object(checkpoint.folder / "config.json")
    return embedding_tables(checkpoint, embedding_tensors(checkpoint, family_of(checkpoint.folder), config))


def _config(checkpoint: shards.Checkpoint, old_rows: int, new_rows: int) -> dict:
    """config.json with the new number of rows, and untied if the output layer differs from the embedding."""
    config = read_object(checkpoint.folder / "config.json")
    family = family_of(checkpoint.folder)
    if family.is_tied(config) and not embedding_tensors(checkpoint, family, config).tied:
        message = f"expand: the output layer of {checkpoint.folder} differs from its embedding"
        print(f"{message}; the new checkpoint does not tie the two", file=sys.stderr, flush=True)
        config = family.untied(config)
    return _resized(config, old_rows, new_rows)


def _write_weights(
    checkpoint: shards.Checkpoint,
    folder: Path,
    tables: dict[str, Table],
    new_rows: int,
    known: int,
    tokenizer: dict,
    init: rows.Init,
    pool: shards.Workers,
) -> dict[str, str]:
    """Write the weights; returns the SHA-256 of the files that were not linked, by name."""
    digits = [tokenizer["model"]["vocab"][str(d)] for d in range(10)]
    sha256, weight_map, total = {}, {}, 0
    for name, shard in checkpoint.shards.items():
        entries = [
            _grown(shard, spec, new_rows, known, digits, init) if spec.name in tables else shards.copied(shard, spec)
            for spec in shard.tensors.values()
        ]
        if tables.keys() & shard.tensors.keys():
            sha256[name] = shards.write_file(folder / name, entries, shard.metadata, pool)
        else:
            shards.link_or_copy(shard.path, folder / name)
        weight_map |= dict.fromkeys(shard.tensors, name)
        total += sum(entry.nbytes for entry in entries)
    if checkpoint.sharded:
        shards.write_index(folder, weight_map, total, checkpoint.index_metadata or {})
    return sha256


def _grown(
    shard: shards.ShardFile, spec: shards.TensorSpec, new_rows: int, known: int, digits: list[int], init: rows.Init
) -> shards.Entry:
    width = spec.nbytes // spec.shape[0]
    if known > spec.shape[0]:
        problem = "the embedding table has fewer rows than the tokenizer has tokens"
        raise ModelError(located(problem, file=shard.path, field=spec.name, expected=known, found=spec.shape[0]))

    after = known + 1 + COORD_BINS

    def fill(out: Output, position: int) -> None:
        out.write(position, rows.to_bytes(rows.new_rows(shard, spec, known, digits, init), spec.dtype))

    def jobs() -> Iterator[shards.Job]:
        yield from shards.copy_jobs(shard, spec, 0, known * width)
        yield shards.Job((1 + COORD_BINS) * width, fill)  # reads the full table for its statistics
        yield from shards.copy_jobs(shard, spec, after * width, spec.nbytes)

    return shards.Entry(spec.name, spec.dtype, (new_rows, *spec.shape[1:]), jobs)


def _resized(config: Any, old: int, new: int) -> Any:
    """`config` with every `vocab_size`, at any depth, set to the new number of rows."""
    if isinstance(config, list):
        return [_resized(value, old, new) for value in config]
    if not isinstance(config, dict):
        return config
    if config.get("vocab_size", old) != old:
        problem = "vocab_size differs from the rows of the embedding table"
        raise ModelError(located(problem, file="config.json", expected=old, found=config["vocab_size"]))
    return {key: new if key == "vocab_size" else _resized(value, old, new) for key, value in config.items()}


def _write_tokenizer_files(base: Path, folder: Path, tokenizer: dict, first: int) -> None:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    names = [WILDCARD_TOKEN, *coord_tokens()]
    tokenizer["added_tokens"] += [{"id": first + i, "content": name, **flags} for i, name in enumerate(names)]
    text = msgspec.json.format(msgspec.json.encode(tokenizer), indent=2)
    io.write_text(folder / "tokenizer.json", text.decode())
    settings = base / "tokenizer_config.json"
    if settings.exists():
        content = read_object(settings)
        if "added_tokens_decoder" in content:
            new = {str(first + i): {"content": name, **flags} for i, name in enumerate(names)}
            content["added_tokens_decoder"] |= new
        io.write_json(folder / settings.name, content)
    added = base / "added_tokens.json"
    if added.exists():
        io.write_json(folder / added.name, read_object(added) | {name: first + i for i, name in enumerate(names)})


def _other_files(base: Path, *, report: bool = False) -> Iterator[Path]:
    for file in own_files(base, "expand" if report else None):
        skip = file.name in _REWRITTEN or file.suffix in _WEIGHT_SUFFIXES or file.name == shards.INDEX_NAME
        if not skip:
            yield file


def _tokenizer_file(folder: str | Path) -> Path:
    path = Path(folder) / "tokenizer.json"
    if not path.exists():
        raise ModelError(
            located("file not found", file=path, fix="a checkpoint needs its fast tokenizer's tokenizer.json")
        )
    return path


def _tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    with library_errors("load the tokenizer", path):
        return Tokenizer.from_file(str(path))


def _next_id(tokenizer: dict) -> int:
    ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
    return max(ids) + 1


def _entries(content: dict) -> dict[str, int]:
    return content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
