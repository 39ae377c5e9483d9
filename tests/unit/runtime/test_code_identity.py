"""A rule's code hash changes with the code that it runs, and with nothing else."""

import ast
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from coordexp.runtime.code_identity import SHIPPED, closure, code_fingerprint, spelled

REPOSITORY = Path(__file__).resolve().parents[3]


ROOTS = (REPOSITORY, REPOSITORY / "src")


def project(folder, **modules):
    for name, text in modules.items():
        path = folder.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return (folder,)


def test_follows_imports_wherever_they_stand(tmp_path):
    roots = project(
        tmp_path,
        a="def f():\n    from pkg.b import g\n",
        pkg__b="import pkg.c\n",
        pkg__c="X = 1\n",
        other="X = 2\n",
    )
    (tmp_path / "pkg" / "__init__.py").write_text("")
    assert closure("a", roots) == {"a", "pkg", "pkg.b", "pkg.c"}


def test_changes_with_code_alone(tmp_path):
    before = code_fingerprint("a", project(tmp_path / "1", a="import b\n", b="X = 1\n"))
    comment = code_fingerprint("a", project(tmp_path / "2", a="import b  # why\n", b='"""Doc."""\nX = 1\n'))
    other = code_fingerprint("a", project(tmp_path / "3", a="import b\n", b="X = 2\n"))
    assert before != other
    assert comment != other


def test_a_template_beside_the_code_counts(tmp_path):
    (roots,) = project(tmp_path, a="import pkg.b\n", pkg__b="X = 1\n")
    (roots / "pkg" / "__init__.py").write_text("")
    before = code_fingerprint("a", (roots,))
    (roots / "pkg" / "templates").mkdir()
    (roots / "pkg" / "templates" / "page.html.j2").write_text("<p>")
    template = code_fingerprint("a", (roots,))
    (roots / "unrelated.json").write_text("{}")
    assert code_fingerprint("a", (roots,)) == template != before


@pytest.mark.parametrize(
    "name",
    [
        *(".b.py.swp", "b.py~", "page.html.j2~", ".page.html.j2.swp", ".DS_Store", ".nfs000000000001", "#b.py#"),
        *(".ipynb_checkpoints/page.json", ".ipynb_checkpoints/b.py", "templates/.page.html.j2.swp"),
        *("templates/.ipynb_checkpoints/page.json", "b.py.orig", "__pycache__/b.cpython-311.pyc"),
    ],
)
def test_what_editors_and_file_systems_leave_does_not_count(tmp_path, name):
    (roots,) = project(tmp_path, a="import pkg.b\n", pkg__b="X = 1\n")
    (roots / "pkg" / "__init__.py").write_text("")
    (roots / "pkg" / "templates").mkdir()
    before = code_fingerprint("a", (roots,))
    file = roots / "pkg" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("left")
    assert code_fingerprint("a", (roots,)) == before


def test_the_files_that_count_are_those_that_the_package_ships():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["coordexp"]
    package = REPOSITORY / "src" / "coordexp"
    shipped = {file for pattern in patterns for file in package.glob(pattern)}
    there = {file for suffix in SHIPPED for file in package.rglob(f"[!.]*{suffix}")}
    assert {Path(pattern).suffix for pattern in patterns} == set(SHIPPED)
    assert shipped == there != set()


def test_comments_docstrings_and_layout_do_not_count(tmp_path):
    one = project(tmp_path / "1", a='"""One."""\nX = [1, 2]\n')
    two = project(tmp_path / "2", a='"""Two."""\n# a reason\nX = [\n    1,\n    2,\n]\n')
    assert code_fingerprint("a", one) == code_fingerprint("a", two)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("return", "return None"), ("return 1", "return 1.0"), ("return 1", "return True"), ("f()", "f(None)")),
        *(("return '1'", "return 1"), ("return 'a'", "return b'a'"), ("return ()", "return []"), ("f(a)", "f(*a)")),
        *(("{**a}", "{None: a}"), ("global a", "global b"), ("x: int", "x: int = None"), ("f'{a}'", "f'{a!r}'")),
        ("match a:\n  case None: pass", "match a:\n  case True: pass"),
    ],
)
def test_code_that_does_something_else_is_spelled_otherwise(one, other):
    assert spelled(ast.parse(one)) != spelled(ast.parse(other))


def test_fields_that_another_python_adds_or_leaves_out_when_empty_do_not_count():
    """3.12 adds `type_params`, empty for nearly every function; a later one may add more."""
    code = "@d\nclass A(B):\n    def f(self, a, *, k, b=None, **c) -> int:\n        return [None, u'x', {**a}]\n"
    tree = ast.parse(code)
    before = spelled(tree)
    for node in ast.walk(tree):
        node._fields = ("first", *(name for name in node._fields if getattr(node, name) not in (None, [])), "last")
        node.first, node.last = [], None
    assert spelled(tree) == before == spelled(ast.parse(code.replace("u'x'", "'x'")))


def test_an_empty_text_that_3_12_1_puts_into_a_format_does_not_count():
    one, other = (ast.parse("f'{a:{b}}'", mode="eval") for _ in range(2))
    one.body.values[0].format_spec.values[1:] = []
    other.body.values[0].format_spec.values[1:] = [ast.Constant("")]
    assert spelled(one) == spelled(other)


@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_the_hash_is_the_same_under_another_python(version):
    entries = (
        "coordexp.training.ms_swift.plugin",
        "coordexp.training.ms_swift.eval_plugin",
        "workflow_scripts.report",
        "coordexp.cli",
    )
    code = (
        "import sys; from pathlib import Path; from coordexp.runtime.code_identity import code_fingerprint\n"
        "for entry in sys.argv[2:]: print(code_fingerprint(entry, (Path(sys.argv[1]), Path(sys.argv[1]) / 'src')))"
    )
    other = shutil.which(f"python{version}")
    if other is None or subprocess.run([other, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"no python{version} here")
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    here, there = (
        subprocess.check_output([python, "-c", code, str(REPOSITORY), *entries], env=env, text=True)
        for python in (sys.executable, other)
    )
    assert here == there != ""


def test_evaluation_does_not_depend_on_training():
    modules = closure("workflow_scripts.evaluate", ROOTS)
    assert "coordexp.evaluation.evaluate" in modules
    assert not any(name.startswith(("coordexp.swift", "coordexp.loss", "coordexp.infer")) for name in modules)


def test_training_depends_on_the_loss_and_with_detection_on_decoder_and_evaluation():
    training, watching = (closure(f"coordexp.{name}.plugin", ROOTS) for name in ("swift", "watch"))
    assert {"coordexp.losses.criterion", "coordexp.training.ms_swift.trainer"} <= training
    assert not any(name.startswith(("coordexp.infer", "coordexp.evaluate")) for name in training)
    assert {"coordexp.inference.decoder", "coordexp.evaluation.coco_lvis_ap"} <= watching
