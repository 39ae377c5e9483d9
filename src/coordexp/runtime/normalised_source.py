"""The source of a module without comments, docstrings, formatting and texts for people, which no result depends on.

A *text for people* is an argument of
- an exception of `coordexp.runtime.errors` or a common built-in one, `located`, `nearest`, `sys.exit`, or an `assert`;
- `print` to the terminal, `sys.stderr.write`, `logger.*`, `warnings.warn`, `progress.note`, and whatever
  `coordexp.runtime.estimates` and `coordexp.runtime.progress` export;
- `description=`, `help=` and `title=` of `Meta`, `choice` and argparse;
- or the value of a local variable (or a module's `_NAME`) that is read nowhere but in such arguments.

In a text, only calls count that might have a side effect: an f-string may be reworded and show other variables, while
`print(queue.pop())` still pops. Exceptions of any other class count in full, because their arguments may be data.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator

INFRASTRUCTURE = "coordexp.runtime"
_TEXT_MODULES = tuple(f"{INFRASTRUCTURE}.{name}" for name in ("errors", "estimates", "progress"))
_BUILTIN_ERRORS = {"AssertionError", "KeyError", "NotImplementedError", "RuntimeError", "TypeError", "ValueError"}
_LOGGERS, _LOG_METHODS = {"log", "logger", "logging"}, {"critical", "debug", "error", "exception", "info", "warning"}
_TERMINAL = ("sys.stderr", "sys.stdout")
_DESCRIBED = {"ArgumentParser", "Meta", "add_argument", "add_parser", "arguments", "choice"}
_DESCRIPTIONS = {"description", "help", "title"}
_PURE = {
    *("abs", "ascii", "bool", "dict", "enumerate", "float", "getattr", "int", "isinstance", "len", "list", "max"),
    *("min", "range", "repr", "reversed", "round", "set", "sorted", "str", "sum", "tuple", "type", "zip", "Path"),
    *("capitalize", "format", "items", "join", "keys", "lower", "removeprefix", "removesuffix"),
    *("rstrip", "lstrip", "split", "strip", "title", "upper", "values", "relative_to", "as_posix", "union"),
}
_EMPTY = "Constant('')"
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def normalise(source: str | ast.Module) -> str:
    """The same text for all sources that compute the same by the rules above, under every Python version."""
    return _Module(ast.parse(source) if isinstance(source, str) else source).spell_all()


class _Module:
    """The syntax tree of a module with its texts marked."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.text_callables = set(_BUILTIN_ERRORS)
        self.texts: set[int] = set()  # ids of nodes that are texts, without the calls in them that count
        self.text_roots: set[int] = set()
        self.text_names: dict[int, set[str]] = {}  # by id of a scope
        self._find_callables()
        self._find_texts()

    def spell_all(self) -> str:
        """The normalised text of the module."""
        return self._list(self._statements(self.tree.body, self.tree))

    def _find_callables(self) -> None:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module in _TEXT_MODULES:
                self.text_callables |= {alias.asname or alias.name for alias in node.names}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef) and self._is_plain_error(node):
                self.text_callables.add(node.name)

    def _is_plain_error(self, node: ast.ClassDef) -> bool:
        """Whether a class only names another kind of an error whose arguments are texts."""
        bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
        return bool(bases & self.text_callables) and all(map(_is_bare, node.body))

    def _find_texts(self) -> None:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call) and self._takes_text(node):
                for argument in (*node.args, *(keyword.value for keyword in node.keywords)):
                    self._mark(argument)
            elif isinstance(node, ast.Call) and _name(node.func).split(".")[-1] in _DESCRIBED:
                for keyword in node.keywords:
                    if keyword.arg in _DESCRIPTIONS:
                        self._mark(keyword.value)
                if _name(node.func) == "choice" and len(node.args) > 1:
                    self._mark(node.args[1])
            elif isinstance(node, ast.Assert) and node.msg is not None:
                self._mark(node.msg)
        scopes = [self.tree, *(node for node in ast.walk(self.tree) if isinstance(node, _FUNCTIONS))]
        while sum(self._find_text_names(scope) for scope in scopes):
            pass

    def _takes_text(self, call: ast.Call) -> bool:
        name = _name(call.func)
        if name == "print":
            files = [_name(keyword.value) for keyword in call.keywords if keyword.arg == "file"]
            return all(file in _TERMINAL for file in files)
        owner, _, method = name.rpartition(".")
        return (
            name in self.text_callables
            or name in ("sys.exit", "warnings.warn", *(f"{stream}.write" for stream in _TERMINAL))
            or (owner.split(".")[-1] in _LOGGERS and method in _LOG_METHODS)
            or (method == "note" and "progress" in owner)
        )

    def _mark(self, node: ast.AST) -> None:
        self.text_roots.add(id(node))
        waiting = [node]
        while waiting:
            inner = waiting.pop()
            if not self._acts(inner):
                self.texts.add(id(inner))
                waiting += ast.iter_child_nodes(inner)

    def _acts(self, node: ast.AST) -> bool:
        """Whether evaluating this node of a text might have a side effect."""
        if isinstance(node, ast.Call):
            return not (_name(node.func).split(".")[-1] in _PURE or self._takes_text(node) or _is_text_method(node))
        return isinstance(node, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom)

    def _find_text_names(self, scope: ast.AST) -> bool:
        """Mark the values of names of `scope` that only texts read; whether any is new."""
        known = self.text_names.setdefault(id(scope), set())
        values: dict[str, list[ast.AST]] = {}
        barred: set[str] = set()
        assigned: set[int] = set()
        for statement in _own_statements(scope):
            for target, value in _assignments(statement):
                values.setdefault(target.id, []).append(value)
                assigned.add(id(target))
        for node in ast.walk(scope):
            if isinstance(node, ast.Global | ast.Nonlocal):
                barred.update(node.names)
            elif isinstance(node, ast.arg):
                barred.add(node.arg)
            elif isinstance(node, ast.ExceptHandler) and node.name:
                barred.add(node.name)
            elif isinstance(node, ast.Name) and id(node) not in assigned and id(node) not in self.texts:
                barred.add(node.id)
        private = values if isinstance(scope, _FUNCTIONS) else {name for name in values if name.startswith("_")}
        new = {name for name in private if name not in barred and not name.startswith("__")} - known
        for name in new:
            for value in values[name]:
                self._mark(value)
        known |= new
        return bool(new)

    def _statements(self, body: list[ast.stmt], scope: ast.AST) -> list[str]:
        return [spelled for statement in body if (spelled := self._statement(statement, scope))]

    def _statement(self, node: ast.stmt, scope: ast.AST) -> str:
        """Spelling of a statement; empty for one without an effect by the rules of this module."""
        if _is_bare(node) or _is_infrastructure_import(node):
            return ""
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and self._takes_text(node.value):
            name = _name(node.value.func)
            return self._node(node) if name == "sys.exit" else self._list(self._effects(node.value, root=True))
        pairs = list(_assignments(node))
        if pairs and all(target.id in self.text_names.get(id(scope), ()) for target, _ in pairs):
            return self._list([effect for _, value in pairs for effect in self._effects(value)])
        if pairs and all(target.id in ("__all__", "__version__") for target, _ in pairs):
            return ""
        if isinstance(node, ast.If) and not self._effects(node.test):
            body, orelse = (self._statements(part, scope) for part in (node.body, node.orelse))
            if not body and not orelse:
                return ""
        return self._node(node, scope)

    def _effects(self, node: ast.AST, *, root: bool = False) -> list[str]:
        """Spellings of the parts of an expression that might have a side effect."""
        if not root and self._acts(node):
            return [self._tree(node, None)]
        return [effect for inner in ast.iter_child_nodes(node) for effect in self._effects(inner)]

    def _node(self, node: object, scope: ast.AST | None = None) -> str:
        """Text of a field of the tree; for a text for people, only its side effects."""
        if isinstance(node, list):
            if node and all(isinstance(item, ast.stmt) for item in node):
                return self._list(self._statements(node, scope or self.tree))
            return self._list(filter(None, (self._node(item, scope) for item in node)))
        if isinstance(node, ast.AST) and id(node) in self.text_roots:
            return self._list(self._effects(node))
        if isinstance(node, ast.keyword) and id(node.value) in self.text_roots:
            return self._list(self._effects(node.value))
        return self._tree(node, scope)

    def _tree(self, node: object, scope: ast.AST | None) -> str:
        """Text of a node: unlike `ast.dump`, without empty fields, in which Python versions differ.

        A constant keeps its type, and a None that the code names.
        """
        if isinstance(node, ast.Constant):  # `kind` only distinguishes u"" from ""
            return f"Constant({node.value!a})"
        if isinstance(node, ast.JoinedStr):  # 3.12 ends a computed format, as in {x:{width}}, with an empty text
            parts = (self._node(part, scope) for part in node.values)
            return f"JoinedStr({', '.join(part for part in parts if part != _EMPTY)})"
        if isinstance(node, ast.AST):
            inner = node if isinstance(node, (*_FUNCTIONS, ast.ClassDef)) else scope
            values = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
            fields = [f"{name}={text}" for name, value in values if (text := self._node(value, inner))]
            return f"{type(node).__name__}({', '.join(fields)})"
        return ascii(node)

    def _list(self, parts: Iterable[str]) -> str:
        parts = list(parts)
        return f"[{', '.join(parts)}]" if parts else ""


def _own_statements(scope: ast.AST) -> Iterator[ast.stmt]:
    """Statements of a function or module, not those of functions and classes in it."""
    waiting = list(ast.iter_child_nodes(scope))
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.stmt):
            yield node
        if not isinstance(node, (*_FUNCTIONS, ast.ClassDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)


def _assignments(node: ast.stmt) -> Iterator[tuple[ast.Name, ast.expr]]:
    """(name, value) of a plain assignment to names, `a = x` or `a, b = x, y`."""
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        yield node.target, node.value
    if not isinstance(node, ast.Assign) or len(node.targets) != 1:
        return
    target, value = node.targets[0], node.value
    if isinstance(target, ast.Name):
        yield target, value
        return
    targets, values = (getattr(side, "elts", []) for side in (target, value))
    if len(targets) == len(values) and all(isinstance(name, ast.Name) for name in targets):
        yield from zip(targets, values, strict=True)


def _is_bare(node: ast.stmt) -> bool:
    """A docstring, another constant as a statement, or `pass`."""
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _is_infrastructure_import(node: ast.stmt) -> bool:
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else names
    return bool(names) and all(f"{name}.".startswith(f"{INFRASTRUCTURE}.") for name in names)


def _is_text_method(call: ast.Call) -> bool:
    """A method of a literal text, such as `", ".join(...)`."""
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    return isinstance(owner, ast.JoinedStr) or (isinstance(owner, ast.Constant) and isinstance(owner.value, str))


def _name(node: ast.AST) -> str:
    """`a.b.c` of a dotted name; only the last part is known of `f().c`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return ""
