"""The source of a module without the parts that cannot affect a result: comments, docstrings, formatting and messages.

A *message* is an argument of
- an exception of `coordexp.runtime.errors` or a common built-in one, `located`, `nearest`, `sys.exit`, or an `assert`;
- `print` to the terminal, `sys.stderr.write`, `logger.*`, `warnings.warn`, `progress.note`, and whatever
  `coordexp.runtime.estimates` and `coordexp.runtime.progress` export;
- `description=`, `help=` and `title=` of `Meta`, `choice` and argparse;
- or the value of a local variable (or a module's `_NAME`) that is read nowhere but in such arguments.

Of a message, only calls that might have a side effect are kept: an f-string may be reworded and show other variables,
while `print(queue.pop())` still pops. Arguments of other exception classes are kept in full: they may be data.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from typing import NamedTuple

INFRASTRUCTURE = "coordexp.runtime"
_MESSAGE_MODULES = tuple(f"{INFRASTRUCTURE}.{name}" for name in ("errors", "estimates", "progress"))
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
    """The same text for all sources that compute the same according to the rules above, in every Python version."""
    return _Module(ast.parse(source) if isinstance(source, str) else source).render()


class _Names(NamedTuple):
    """Names in a function or module: values of those that only messages might read, others that can never be such
    names, and the nodes that read or change a name other than by a plain assignment.
    """

    values: dict[str, list[ast.AST]]
    barred: set[str]
    read: list[ast.Name]


class _Module:
    """The syntax tree of a module, with its messages marked."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.nodes = list(ast.walk(tree))
        self.message_callables = set(_BUILTIN_ERRORS)
        self.messages: set[int] = set()  # ids of nodes in messages, without the calls that are kept
        self.message_roots: set[int] = set()
        self.message_names: dict[int, set[str]] = {}  # names that only messages read, by id of their scope
        self._find_callables()
        self._find_messages()

    def render(self) -> str:
        """The normalised text of the module."""
        return self._list(self._statements(self.tree.body, self.tree))

    def _find_callables(self) -> None:
        for node in self.nodes:
            if isinstance(node, ast.ImportFrom) and node.module in _MESSAGE_MODULES:
                self.message_callables |= {alias.asname or alias.name for alias in node.names}
        for node in self.nodes:
            if isinstance(node, ast.ClassDef) and self._is_plain_error(node):
                self.message_callables.add(node.name)

    def _is_plain_error(self, node: ast.ClassDef) -> bool:
        """Whether a class is an empty subclass of an error whose arguments are messages."""
        bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
        return bool(bases & self.message_callables) and all(map(_is_bare, node.body))

    def _find_messages(self) -> None:
        for node in self.nodes:
            if isinstance(node, ast.Call) and self._takes_message(node):
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
        scopes = [self.tree, *(node for node in self.nodes if isinstance(node, _FUNCTIONS))]
        names = [(scope, facts) for scope in scopes if (facts := _names(scope)).values]
        while sum(self._find_message_names(scope, facts) for scope, facts in names):
            pass

    def _takes_message(self, call: ast.Call) -> bool:
        name = _name(call.func)
        if name == "print":
            files = [_name(keyword.value) for keyword in call.keywords if keyword.arg == "file"]
            return all(file in _TERMINAL for file in files)
        owner, _, method = name.rpartition(".")
        return (
            name in self.message_callables
            or name in ("sys.exit", "warnings.warn", *(f"{stream}.write" for stream in _TERMINAL))
            or (owner.split(".")[-1] in _LOGGERS and method in _LOG_METHODS)
            or (method == "note" and "progress" in owner)
        )

    def _mark(self, node: ast.AST) -> None:
        self.message_roots.add(id(node))
        waiting = [node]
        while waiting:
            inner = waiting.pop()
            if not self._acts(inner):
                self.messages.add(id(inner))
                waiting += ast.iter_child_nodes(inner)

    def _acts(self, node: ast.AST) -> bool:
        """Whether evaluating this node of a message might have a side effect."""
        if isinstance(node, ast.Call):
            return not (
                _name(node.func).split(".")[-1] in _PURE or self._takes_message(node) or _is_string_method(node)
            )
        return isinstance(node, ast.NamedExpr | ast.Await | ast.Yield | ast.YieldFrom)

    def _find_message_names(self, scope: ast.AST, facts: _Names) -> bool:
        """Mark the values of variables of `scope` that only messages read; returns whether any is new."""
        known = self.message_names.setdefault(id(scope), set())
        read = {node.id for node in facts.read if id(node) not in self.messages}
        new = {name for name in facts.values if name not in facts.barred and name not in read} - known
        for name in new:
            for value in facts.values[name]:
                self._mark(value)
        known |= new
        return bool(new)

    def _statements(self, body: list[ast.stmt], scope: ast.AST) -> list[str]:
        return [text for statement in body if (text := self._statement(statement, scope))]

    def _statement(self, node: ast.stmt, scope: ast.AST) -> str:
        """Text of a statement; empty if no result can depend on it."""
        if _is_bare(node) or _is_infrastructure_import(node):
            return ""
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and self._takes_message(node.value):
            name = _name(node.value.func)
            return self._node(node) if name == "sys.exit" else self._list(self._effects(node.value, root=True))
        pairs = list(_assignments(node))
        if pairs and all(target.id in self.message_names.get(id(scope), ()) for target, _ in pairs):
            return self._list([effect for _, value in pairs for effect in self._effects(value)])
        if pairs and all(target.id in ("__all__", "__version__") for target, _ in pairs):
            return ""
        if isinstance(node, ast.If) and not self._effects(node.test):
            body, orelse = (self._statements(part, scope) for part in (node.body, node.orelse))
            if not body and not orelse:
                return ""
        return self._node(node, scope)

    def _effects(self, node: ast.AST, *, root: bool = False) -> list[str]:
        """Texts of the parts of an expression that might have a side effect."""
        if not root and self._acts(node):
            return [self._tree(node, None)]
        return [effect for inner in ast.iter_child_nodes(node) for effect in self._effects(inner)]

    def _node(self, node: object, scope: ast.AST | None = None) -> str:
        """Text of a field of the tree; of a message, only the calls that are kept."""
        if isinstance(node, list):
            if node and all(isinstance(item, ast.stmt) for item in node):
                return self._list(self._statements(node, scope or self.tree))
            return self._list(filter(None, (self._node(item, scope) for item in node)))
        if isinstance(node, ast.AST) and id(node) in self.message_roots:
            return self._list(self._effects(node))
        if isinstance(node, ast.keyword) and id(node.value) in self.message_roots:
            return self._list(self._effects(node.value))
        return self._tree(node, scope)

    def _tree(self, node: object, scope: ast.AST | None) -> str:
        """Text of a node: unlike `ast.dump`, without empty fields, in which Python versions differ.

        A constant keeps its type, and a None that the code names.
        """
        if isinstance(node, ast.Constant):  # `kind` only distinguishes u"" from ""
            return f"Constant({node.value!a})"
        if isinstance(node, ast.JoinedStr):  # 3.12 ends a computed format, as in {x:{width}}, with an empty string
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


def _names(scope: ast.AST) -> _Names:
    names = _Names({}, set(), [])
    assigned: set[int] = set()
    for statement in _own_statements(scope):
        for target, value in _assignments(statement):
            assigned.add(id(target))
            if not target.id.startswith("__") and (isinstance(scope, _FUNCTIONS) or target.id.startswith("_")):
                names.values.setdefault(target.id, []).append(value)
    for node in ast.walk(scope) if names.values else ():
        if isinstance(node, ast.Name):
            if id(node) not in assigned:
                names.read.append(node)
        elif isinstance(node, ast.Global | ast.Nonlocal):
            names.barred.update(node.names)
        elif isinstance(node, ast.arg):
            names.barred.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.barred.add(node.name)
    return names


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


def _is_string_method(call: ast.Call) -> bool:
    """A method of a string literal, such as `", ".join(...)`."""
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    return isinstance(owner, ast.JoinedStr) or (isinstance(owner, ast.Constant) and isinstance(owner.value, str))


def _name(node: ast.AST) -> str:
    """`a.b.c` of a dotted name; only the last part is known of `f().c`."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return ""
