"""A rule's code hash changes with the code that it runs, and with nothing else."""

from pathlib import Path

from coordexp.fingerprint import closure, code_fingerprint

REPOSITORY = Path(__file__).resolve().parents[2]


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
    (roots / "pkg" / "templates" / "page.html").write_text("<p>")
    (roots / "unrelated.json").write_text("{}")
    assert code_fingerprint("a", (roots,)) != before


def test_comments_docstrings_and_layout_do_not_count(tmp_path):
    one = project(tmp_path / "1", a='"""One."""\nX = [1, 2]\n')
    two = project(tmp_path / "2", a='"""Two."""\n# a reason\nX = [\n    1,\n    2,\n]\n')
    assert code_fingerprint("a", one) == code_fingerprint("a", two)


def test_evaluation_does_not_depend_on_training():
    modules = closure("workflow_scripts.evaluate", ROOTS)
    assert "coordexp.evaluate.run" in modules
    assert not any(name.startswith(("coordexp.swift", "coordexp.loss", "coordexp.infer")) for name in modules)


def test_training_depends_on_the_loss_and_with_detection_on_decoder_and_evaluation():
    training, watching = (closure(f"coordexp.{name}.plugin", ROOTS) for name in ("swift", "watch"))
    assert {"coordexp.loss.objective", "coordexp.swift.trainer"} <= training
    assert not any(name.startswith(("coordexp.infer", "coordexp.evaluate")) for name in training)
    assert {"coordexp.infer.decode", "coordexp.evaluate.engine"} <= watching
