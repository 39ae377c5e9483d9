"""A stage's code identity changes with the code that it runs, and with nothing else; content identity with content."""

import struct
import tomllib
from pathlib import Path

import pytest

from coordexp.runtime.code_identity import PACKAGE_DATA, closure, code_identity, content_identity, identity_of

REPOSITORY = Path(__file__).resolve().parents[3]
ROOTS = (REPOSITORY, REPOSITORY / "src")


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch):
    monkeypatch.delenv("COORDEXP_PLUGINS", raising=False)


def project(folder, **modules):
    """The roots of a project with these modules; `__` in a name separates packages."""
    for name, text in modules.items():
        path = folder.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return (folder,)


def test_imports_are_followed_wherever_they_are_in_a_module(tmp_path):
    roots = project(
        tmp_path,
        a="def f():\n    from pkg.b import g\n",
        pkg__b="import pkg.c\n",
        pkg__c="X = 1\n",
        other="X = 2\n",
    )
    (tmp_path / "pkg" / "__init__.py").write_text("")
    assert closure("a", roots) == {"a", "pkg", "pkg.b", "pkg.c"}


def test_only_code_counts(tmp_path):
    def identity(name, b):
        return code_identity("a", roots=project(tmp_path / name, a="import b\n", b=b))

    before = identity("1", "X = 1\n")
    assert identity("2", '"""Doc."""\nX = 1  # a reason\n') == before
    assert identity("3", "X = 2\n") != before


def test_infrastructure_does_not_count(tmp_path):
    def identity(name, runtime):
        files = {"coordexp__a": "from coordexp.runtime import tuning\nX = tuning.SIZE\n"}
        return code_identity("coordexp.a", roots=project(tmp_path / name, coordexp__runtime__tuning=runtime, **files))

    assert identity("1", "SIZE = 1\n") == identity("2", "SIZE = 2\n")


def test_several_modules_count_together(tmp_path):
    roots = project(tmp_path, a="X = 1\n", b="X = 2\n")
    assert code_identity("a", "b", roots=roots) not in (
        code_identity("a", roots=roots),
        code_identity("b", roots=roots),
    )
    assert code_identity("a", "b", roots=roots) == code_identity("b", "a", roots=roots)


def test_a_template_in_a_package_counts(tmp_path):
    (root,) = project(tmp_path, a="import pkg.b\n", pkg__b="X = 1\n")
    (root / "pkg" / "__init__.py").write_text("")
    before = code_identity("a", roots=[root])
    (root / "pkg" / "templates").mkdir()
    (root / "pkg" / "templates" / "page.html.j2").write_text("<p>")
    template = code_identity("a", roots=[root])
    (root / "unrelated.json").write_text("{}")
    assert code_identity("a", roots=[root]) == template != before


@pytest.mark.parametrize(
    "name",
    [
        *(".b.py.swp", "b.py~", "page.html.j2~", ".page.html.j2.swp", ".DS_Store", ".nfs000000000001", "#b.py#"),
        *(".ipynb_checkpoints/page.json", ".ipynb_checkpoints/b.py", "templates/.page.html.j2.swp"),
        *("templates/.ipynb_checkpoints/page.json", "b.py.orig", "__pycache__/b.cpython-311.pyc"),
    ],
)
def test_leftovers_of_editors_and_file_systems_do_not_count(tmp_path, name):
    (root,) = project(tmp_path, a="import pkg.b\n", pkg__b="X = 1\n")
    (root / "pkg" / "__init__.py").write_text("")
    (root / "pkg" / "templates").mkdir()
    before = code_identity("a", roots=[root])
    file = root / "pkg" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("left")
    assert code_identity("a", roots=[root]) == before


def test_the_files_that_count_are_those_that_the_package_ships():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["coordexp"]
    patterns.remove("py.typed")  # for type checkers only
    package = REPOSITORY / "src" / "coordexp"
    shipped = {file for pattern in patterns for file in package.glob(pattern)}
    present = {file for suffix in PACKAGE_DATA for file in package.rglob(f"[!.]*{suffix}")}
    assert {Path(pattern).suffix for pattern in patterns} <= set(PACKAGE_DATA)
    assert shipped == present != set()


def test_a_plugin_counts_for_the_stages_that_use_a_module_that_it_imports(tmp_path, monkeypatch):
    roots = project(
        tmp_path,
        coordexp__losses="TERMS = {}\n",
        coordexp__convert="X = 1\n",
        coordexp__train="from coordexp.losses import TERMS\n",
    )
    plugin = tmp_path / "terms.py"
    monkeypatch.setenv("COORDEXP_PLUGINS", str(plugin))

    def identities(text):
        plugin.write_text(text)
        closure.cache_clear()
        from coordexp.runtime import code_identity as module

        module._imports.cache_clear()
        module._normalised.cache_clear()
        return [code_identity(f"coordexp.{name}", roots=roots) for name in ("train", "convert")]

    one = identities("from coordexp.losses import TERMS\nTERMS['a'] = 1\n")
    comment = identities("from coordexp.losses import TERMS  # a reason\nTERMS['a'] = 1\n")
    other = identities("from coordexp.losses import TERMS\nTERMS['a'] = 2\n")
    assert one == comment and one[0] != other[0] and one[1] == other[1]
    assert identities("X = 1\n")[1] != identities("X = 2\n")[1]  # nothing is known of its use


def test_evaluation_does_not_depend_on_training():
    modules = closure("workflow_scripts.evaluate", ROOTS)
    assert "coordexp.evaluation.evaluate" in modules
    layers = ("coordexp.training", "coordexp.losses", "coordexp.inference", "coordexp.runtime")
    assert not any(name.startswith(layers) for name in modules)


def test_loss_curves_depend_on_the_evaluation_of_image_use_only():
    modules = closure("workflow_scripts.curves", ROOTS)
    assert "coordexp.reporting.curves" in modules
    names = {"coordexp.evaluation", "coordexp.evaluation.image_use"}  # the caution about models that ignore the image
    assert {name for name in modules if name.startswith("coordexp.evaluation")} <= names


def test_training_depends_on_the_loss_and_its_evaluation_on_decoder_and_metrics():
    plugins = (f"coordexp.training.ms_swift.{name}" for name in ("plugin", "eval_plugin"))
    training, evaluating = (closure(name, ROOTS) for name in plugins)
    assert {"coordexp.losses.criterion", "coordexp.training.ms_swift.trainer"} <= training
    names = {f"coordexp.evaluation{name}" for name in ("", ".image_use", ".metrics")}  # recipes name metrics
    assert {name for name in training if name.startswith(("coordexp.inference", "coordexp.evaluation"))} <= names
    assert {"coordexp.inference.decoder", "coordexp.evaluation.coco_lvis_ap"} <= evaluating


def test_content_is_hashed_whole_or_sampled(tmp_path):
    text, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    text.write_text("{}")
    weights.write_bytes(struct.pack("<Q", 2) + b"{}" + bytes(100))
    before = content_identity([text, weights])
    assert set(before) == {"config.json", "model.safetensors"}
    assert before["config.json"] == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    weights.write_bytes(struct.pack("<Q", 2) + b"{}" + bytes(99) + b"\1")
    assert content_identity([weights])["model.safetensors"] != before["model.safetensors"]


def test_a_damaged_weights_file_has_an_identity_too(tmp_path):
    for name, content in (("a.safetensors", b""), ("b.safetensors", b"\xff" * 20)):
        (tmp_path / name).write_bytes(content)
    assert len(content_identity(tmp_path.glob("*.safetensors"))) == 2


def test_the_order_of_keys_does_not_count():
    assert (
        identity_of({"a": 1, "b": [1, 2]}) == identity_of({"b": [1, 2], "a": 1}) != identity_of({"a": 1, "b": [2, 1]})
    )


def test_imports_for_type_checkers_do_not_count(tmp_path):
    body = "from typing import TYPE_CHECKING\nimport b\nif TYPE_CHECKING:\n    import c\n"
    assert closure("a", project(tmp_path, a=body, b="X = 1\n", c="X = 2\n")) == {"a", "b"}
