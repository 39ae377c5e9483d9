"""Mixtures: configuration, quotas, rounds without repetition, and units."""

from collections import Counter

import numpy as np
import pytest
from test_data_records import record

from coordexp.data.fusion import Fusion, FusionConfig, FusionSource, load, quotas
from coordexp.data.tokenize import tokenize
from coordexp.errors import ConfigError, DataError
from coordexp.io import write_jsonl


def files(tmp_path, **counts):
    """One file of token-space records for each name."""
    for name, count in counts.items():
        write_jsonl(tmp_path / f"{name}.pixel.jsonl", [record(i) for i in range(count)])
        tokenize(tmp_path / f"{name}.pixel.jsonl", tmp_path / f"{name}.jsonl")


def config(tmp_path, text, name="mix.yaml"):
    path = tmp_path / name
    path.write_text(text)
    return path


def source_counts(rows) -> list[int]:
    return np.bincount(rows[:, 0]).tolist()


def test_a_mixture_with_its_own_prompts(tmp_path):
    files(tmp_path, a=10, b=20)
    path = config(
        tmp_path,
        "seed: 5\n"
        "sources:\n"
        "  a: {jsonl: a.jsonl, user_prompt: Find parts., json_format: compact}\n"
        "  b: {jsonl: b.jsonl, ratio: 0.5}\n",
    )
    mixture = load(path)
    fusion = Fusion(mixture, "token")
    assert fusion.quotas == [10, 10]
    rows = fusion.epoch(0)
    assert source_counts(rows) == [10, 10]
    found, file, settings = fusion.record(*rows[np.argmin(rows[:, 0])])
    assert file == tmp_path / "a.jsonl"
    assert found.coord_space == "token"
    assert settings.style == {"user_prompt": "Find parts.", "json_format": "compact"}
    assert mixture.sources["b"].style == {}


def test_json_is_a_configuration_too(tmp_path):
    files(tmp_path, a=3)
    assert (
        load(config(tmp_path, '{"sources": {"a": {"jsonl": "a.jsonl", "ratio": 2}}}', "mix.json")).sources["a"].ratio
        == 2
    )


def test_epochs_are_reproducible_and_different(tmp_path):
    files(tmp_path, a=30, b=30)
    text = "sources:\n  a: {jsonl: a.jsonl}\n  b: {jsonl: b.jsonl, seed: 4}\n"
    one, two = (Fusion(load(config(tmp_path, text)), "token") for _ in range(2))
    assert np.array_equal(one.epoch(3), two.epoch(3))
    assert not np.array_equal(one.epoch(0), one.epoch(1))
    assert one.epoch(0)[:, 0].tolist() != sorted(one.epoch(0)[:, 0].tolist())  # mixed, not in a row
    other = Fusion(load(config(tmp_path, text.replace("seed: 4", "seed: 5"))), "token")
    a, b = ([sorted(map(tuple, f.epoch(0)[f.epoch(0)[:, 0] == s])) for s in (0, 1)] for f in (one, other))
    assert a == b  # a whole round holds every picture, whatever the seed


@pytest.mark.parametrize("ratio", [0.3, 1.0, 1.7, 2.5])
def test_no_picture_returns_before_all_others_were_seen(tmp_path, ratio):
    files(tmp_path, a=17)
    fusion = Fusion(load(config(tmp_path, f"sources: {{a: {{jsonl: a.jsonl, ratio: {ratio}}}}}")), "token")
    seen: Counter = Counter()
    for number in range(8):
        lines = fusion.epoch(number)[:, 1].tolist()
        assert len(lines) == round(17 * ratio)
        seen.update(lines)
        every = [seen[line] for line in range(17)]
        assert max(every) - min(every) <= 1


def test_quotas_are_exact():
    def shares(size, *ratios):
        sources = {str(i): FusionSource("x", ratio=r) for i, r in enumerate(ratios)}
        return quotas(FusionConfig(sources, epoch_size=size), [100] * len(ratios))

    assert shares(10, 1, 1, 1) == [4, 3, 3]
    assert shares(1000, 0.7, 0.2, 0.1) == [700, 200, 100]
    for size in (1, 7, 99):
        assert sum(shares(size, 0.5, 1.3, 2.2)) == size


def test_an_epoch_of_a_given_size(tmp_path):
    files(tmp_path, a=5, b=50)
    text = "epoch_size: 40\nsources: {a: {jsonl: a.jsonl, ratio: 1}, b: {jsonl: b.jsonl, ratio: 3}}"
    fusion = Fusion(load(config(tmp_path, text)), "token")
    assert source_counts(fusion.epoch(2)) == [10, 30]


def test_extends_merges_and_keeps_each_files_own_paths(tmp_path):
    (tmp_path / "base").mkdir()
    files(tmp_path, mine=4)
    files(tmp_path / "base", a=3, b=3)
    config(tmp_path / "base", "seed: 1\nsources: {a: {jsonl: a.jsonl, ratio: 2}, b: {jsonl: b.jsonl}}")
    text = "extends: base/mix.yaml\nsources: {a: {ratio: 0.5}, b: null, mine: {jsonl: mine.jsonl}}"
    mixture = load(config(tmp_path, text))
    assert list(mixture.sources) == ["a", "mine"]
    assert mixture.sources["a"] == FusionSource(str(tmp_path / "base" / "a.jsonl"), ratio=0.5)
    assert mixture.seed == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sources: {a: {jsonl: a.jsonl, ration: 2}}", r"sources\.a\.ration: unknown key, did you mean 'ratio'"),
        ("source: {a: {jsonl: a.jsonl}}", r"source: unknown key, did you mean 'sources'"),
        ("sources: {a: {jsonl: no.jsonl}}", r"sources\.a\.jsonl: file not found.*no\.jsonl"),
        ("sources: {a: {jsonl: a.jsonl, ratio: 0}}", r"sources\.a\.ratio: cannot mix this"),
        ("sources: {a: {jsonl: a.jsonl, ratio: .nan}}", r"sources\.a\.ratio"),
        ("sources: {a: {jsonl: a.jsonl, ratio: many}}", "Expected `float`"),
        ("sources: {}", "no sources"),
        ("sources: [a.jsonl]", r"mix\.yaml: sources: not a map by name; found 'list'"),
        ("sources: {a: {ratio: 1}}", "missing required field `jsonl`"),
        ("extends: mix.yaml\nsources: {a: {jsonl: a.jsonl}}", "goes in a circle: mix.yaml -> mix.yaml"),
        ("extends: none.yaml", r"none\.yaml: file not found"),
        ("- a", "not a map"),
        ("sources: [", "not YAML"),
    ],
)
def test_a_configuration_that_is_not_sound(tmp_path, text, words):
    files(tmp_path, a=3)
    with pytest.raises(ConfigError, match=words):
        load(config(tmp_path, text))


def test_every_record_of_a_source_must_be_in_the_expected_space(tmp_path):
    files(tmp_path, a=3)
    (tmp_path / "a.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes() + (tmp_path / "a.pixel.jsonl").read_bytes())
    mixture = load(config(tmp_path, "sources: {a: {jsonl: a.jsonl}}"))
    with pytest.raises(DataError, match=r"a.jsonl:4: coord_space: wrong unit; expected 'token', found 'pixel'"):
        Fusion(mixture, "token")


def test_an_empty_source_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(DataError, match="no records"):
        Fusion(load(config(tmp_path, "sources: {a: {jsonl: a.jsonl}}")), "token")
