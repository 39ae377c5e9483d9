"""Sources that compute the same have the same normalised text; all others differ."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coordexp.runtime.normalised_source import normalise

SOURCES = Path(__file__).resolve().parents[3] / "src"

FUNCTION = '''
from coordexp.runtime.errors import DataError, located
from coordexp.runtime.estimates import announce
_HINT = {hint}

class MissingError(DataError):
    """{doc}"""

def convert(rows, progress, queue, logger):
    """{doc}"""
    announce("convert", len(rows), {unit})
    total = 0
    for row in rows:
        if row < 0:
            problem, fix = {problem}, {fix}
            raise DataError(located(problem, field="row", found=row, fix=fix))
        if row == 1:
            raise MissingError({missing})
        total += row
        logger.info({log})
        progress.note({log})
    assert total >= 0, {problem}
    print({log}, file=sys.stderr)
    if total > 10:
        warnings.warn(_HINT)
    return total
'''
TEXTS = {
    "hint": "'use less'",
    "doc": "Convert.",
    "unit": "'rows'",
    "problem": "'negative'",
    "fix": "f'correct {row}'",
    "missing": "'missing'",
    "log": "f'{row} done'",
}
REWORDED = {
    "hint": "'use fewer ' + 'rows'",
    "doc": "Turn rows into a sum.",
    "unit": "f'row{plural}'",
    "problem": "f'row {row} of {len(rows)} is negative'",
    "fix": "'correct it' if rows else 'give rows'",
    "missing": "f'{row!r} is missing', ', '.join(sorted(rows))",
    "log": "'row done'",
}


@pytest.mark.parametrize("text", TEXTS)
def test_texts_for_people_do_not_count(text):
    before, after = FUNCTION.format(**TEXTS), FUNCTION.format(**{**TEXTS, text: REWORDED[text]})
    assert before != after and normalise(before) == normalise(after)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("X = [1, 2]", "# a reason\nX = [\n    1,\n    2,\n]"),
        ("def f():\n    pass", 'def f():\n    """Do nothing."""'),
        ("__version__ = '1'\nX = 1", "__version__ = '2'\n__all__ = ['X']\nX = 1"),
        ("import x", "import x\nfrom coordexp.runtime.io import read_json\nfrom coordexp.runtime import tuning"),
        ("def f():\n    return 1", "def f():\n    if a > 1:\n        print('large', file=sys.stderr)\n    return 1"),
        ("X = Meta(ge=1, description='one')", "X = Meta(ge=1, description='at least one')"),
        ("X = choice(NAMES, 'one of')", "X = choice(NAMES, 'which')"),
    ],
)
def test_other_things_that_do_not_count(one, other):
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        *(("return", "return None"), ("return 1", "return 1.0"), ("return 1", "return True"), ("f()", "f(None)")),
        *(("return '1'", "return 1"), ("return 'a'", "return b'a'"), ("return ()", "return []"), ("f(a)", "f(*a)")),
        *(("{**a}", "{None: a}"), ("global a", "global b"), ("x: int", "x: int = None"), ("f'{a}'", "f'{a!r}'")),
        ("match a:\n  case None: pass", "match a:\n  case True: pass"),
        ("print('a', file=out)", "print('b', file=out)"),  # not the terminal
        ("print(len(queue))", "print(queue.pop())"),  # does something
        ("raise ImageError('no file')", "raise ImageError('missing')"),  # not known to hold text alone
        ("raise ValueError('a')", "raise TypeError('a')"),
        ("text = 'a'\nraise ValueError(text)", "text = 'b'\nraise ValueError(text)"),  # others may import `text`
        ("def f():\n  x = 'a'\n  print(x)\n  return x", "def f():\n  x = 'b'\n  print(x)\n  return x"),
        ("def f():\n  x = q.pop()\n  print(x)", "def f():\n  x = q.peek()\n  print(x)"),
        ("def f(x):\n  x = 'a'\n  print(x)", "def f(x):\n  x = 'b'\n  print(x)\n  g(x)"),
        ("X = Meta(ge=1, description='a')", "X = Meta(ge=2, description='a')"),
        ("if f():\n    print('a')", "print('a')"),
    ],
)
def test_code_that_computes_something_else_has_a_different_text(one, other):
    assert normalise(one) != normalise(other)


def test_fields_that_another_python_adds_or_leaves_out_when_empty_do_not_count():
    """3.12 adds `type_params`, empty for nearly every function; a later one may add more."""
    code = "@d\nclass A(B):\n    def f(self, a, *, k, b=None, **c) -> int:\n        return [None, u'x', {**a}]\n"
    tree = ast.parse(code)
    before = normalise(tree)
    for node in ast.walk(tree):
        node._fields = ("first", *(name for name in node._fields if getattr(node, name) not in (None, [])), "last")
        node.first, node.last = [], None
    assert normalise(tree) == before == normalise(code.replace("u'x'", "'x'"))


def test_an_empty_text_that_3_12_1_puts_into_a_format_does_not_count():
    one, other = (ast.parse("f'{a:{b}}'") for _ in range(2))
    one.body[0].value.values[0].format_spec.values[1:] = []
    other.body[0].value.values[0].format_spec.values[1:] = [ast.Constant("")]
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize("version", ["3.12", "3.13", "3.14"])
def test_the_library_has_the_same_text_under_another_python(version):
    code = (
        "import hashlib, sys; from pathlib import Path; from coordexp.runtime.normalised_source import normalise\n"
        "for file in sorted(Path(sys.argv[1]).rglob('*.py')):\n"
        "    print(file, hashlib.sha256(normalise(file.read_text('utf-8')).encode()).hexdigest())"
    )
    managed = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    other = managed[-1] if managed else shutil.which(f"python{version}")
    if other is None or subprocess.run([other, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip(f"no python{version} here")
    env = {**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONDONTWRITEBYTECODE": "1"}
    here, there = (
        subprocess.check_output([python, "-c", code, str(SOURCES)], env=env, text=True)
        for python in (sys.executable, other)
    )
    assert here == there != ""
