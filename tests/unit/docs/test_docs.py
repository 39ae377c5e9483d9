"""The documentation agrees with the code: commands parse and plan; links, files, messages and examples exist."""

import argparse
import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from functools import reduce
from itertools import chain
from pathlib import Path

import pytest
import yaml

from coordexp import cli
from coordexp.runtime.config_io import merge

REPOSITORY = Path(__file__).resolve().parents[3]
PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "config/README.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
TEXTS = {page.relative_to(REPOSITORY).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
FOLDERS = ("benchmarks", "config", "containers", "docs", "envs", "profiles", "rules", "src", "tests")
IMAGE = "/opt/coordexp"  # where the recipes in containers/ put this repository

# Programs other than CoordExp's own: shell built-ins, and inference servers.
OTHERS = {"source", "cd", "export", "pip", "vllm", "docker", "apptainer"}


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every command in a fenced `bash` block; assignments in front are left out."""
    found = []
    for page, text in TEXTS.items():
        for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.replace(IMAGE, str(REPOSITORY)), comments=True)
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words.pop(0)
                if words:
                    found.append((page, words))
    return found


def of(program: str) -> list[tuple[str, list[str]]]:
    return [(page, words) for page, words in commands() if words[0] == program]


def plans(found: list[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    """Commands to plan, each once; those that name nothing but targets and cores are planned together."""
    plain: list[str] = []
    others: dict[tuple[str, ...], tuple[str, list[str]]] = {}
    for page, words in found:
        rest = [word for word in words[1:] if word not in ("-n", "--cores", "all", "2")]
        if all(word.startswith(("results/", "resources/")) for word in rest):
            plain += rest
        else:
            others.setdefault((page if "my.yaml" in words else "", *rest), (page, words))
    return [("targets", ["snakemake", *dict.fromkeys(plain)]), *others.values()]


def show(value) -> str:
    return value if isinstance(value, str) else " ".join(value)[:70]


def test_every_documented_command_has_a_test():
    known = {"snakemake", "coordexp", "make", "python", "pytest", "bash"} | OTHERS
    assert [(page, words) for page, words in commands() if words[0] not in known] == []
    assert len(of("snakemake")) >= 8 and len(of("coordexp")) >= 5


@pytest.mark.parametrize(("page", "words"), of("coordexp"), ids=show)
def test_coordexp_accepts_the_documented_options(page, words, monkeypatch):
    parse = argparse.ArgumentParser.parse_args
    seen = []

    def only_parse(self, arguments=None, namespace=None):
        seen.append(parse(self, arguments, namespace))
        seen[-1].run = lambda args: 0
        return seen[-1]

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    assert cli.main(words[1:]) == 0
    assert seen[0].command == words[1]


@pytest.mark.parametrize(("page", "words"), of("make"), ids=show)
def test_documented_make_targets_exist(page, words):
    done = subprocess.run(
        ["make", "--dry-run", *words[1:]], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("page", "words"), of("pytest"), ids=show)
def test_documented_pytest_markers_exist(page, words):
    marks = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    assert words[1] == "-m" and words[2] in {mark.split(":")[0] for mark in marks}


@pytest.mark.parametrize(("page", "words"), of("python"), ids=show)
def test_documented_python_scripts_exist(page, words):
    if words[1] == "-m":
        top = words[2].split(".")[0]
        assert top in ("sglang",) or importlib.util.find_spec(words[2]), words[2]
    else:
        assert (REPOSITORY / words[1]).is_file()


@pytest.mark.parametrize(("page", "words"), of("bash"), ids=show)
def test_documented_shell_scripts_exist(page, words):
    assert (REPOSITORY / words[1]).is_file()


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A directory that looks like a fresh clone; `my.yaml` has the YAML blocks of the page."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("Snakefile", "rules", "config", "profiles", "envs", "src", "workflow_scripts", "docs"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


@pytest.mark.parametrize(("page", "words"), plans(of("snakemake")), ids=show)
def test_snakemake_plans_every_documented_command(page, words, clone):
    if "--report" in words:
        pytest.skip("needs results: tests/workflow/test_standards.py runs it")
    profile = words[words.index("--workflow-profile") + 1] if "--workflow-profile" in words else ""
    plugin = "snakemake_executor_plugin_" + ("slurm" if profile.endswith("slurm") else "cluster_generic")
    if profile and importlib.util.find_spec(plugin) is None:
        pytest.skip("the executor plugin is not installed")
    (clone / "my.yaml").write_text(yaml.safe_dump(reduce(merge, configurations(page), {})))
    command = [sys.executable, "-m", "snakemake", "--dry-run", *words[1:]]
    env = {**os.environ, "COORDEXP_VLLM_PYTHON": sys.executable}  # a page that uses it sets it
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Job stats:" in done.stdout + done.stderr


@pytest.mark.parametrize("page", TEXTS)
def test_snakemake_options_in_prose_exist(page, monkeypatch):
    from snakemake.cli import parse_args

    monkeypatch.chdir(REPOSITORY)
    for command in sorted(set(re.findall(r"`snakemake ([^`]*)`", prose(page)))):
        words = [word for word in shlex.split(command) if word != "..."]
        parse_args(words)


def fenced(page: str, kind: str) -> list[str]:
    """Blocks of a language in a page."""
    return re.findall(rf"^```{kind}\n(.*?)^```", TEXTS.get(page, ""), flags=re.DOTALL | re.MULTILINE)


def configurations(page: str) -> list[dict]:
    """The configuration in the YAML blocks of a page, in the order of the page."""
    return [values for values in map(yaml.safe_load, fenced(page, "yaml")) if "sources" not in values]


BLOCKS = [(page, kind, block) for page in TEXTS for kind in ("yaml", "python", "json") for block in fenced(page, kind)]


@pytest.mark.parametrize(("page", "block"), [(p, b) for p, kind, b in BLOCKS if kind == "yaml"], ids=show)
def test_documented_configuration_is_valid(page, block, tmp_path):
    from coordexp.config.settings import Settings, over_defaults
    from coordexp.datasets import mixture

    values = yaml.safe_load(block)
    if "sources" in values:
        (tmp_path / "mixture.yaml").write_text(block)
        assert len(mixture.mixture_files(tmp_path / "mixture.yaml")) == len(values["sources"])
        return
    settings = Settings.load(over_defaults(values, REPOSITORY), REPOSITORY)
    for name in values.get("runs", {}):
        run = f"{name}_768" if name in settings.datasets else name
        assert settings.recipe(run).training
        assert settings.run(run).model in settings.config["models"]


@pytest.mark.parametrize(("page", "block"), [(p, b) for p, kind, b in BLOCKS if kind == "python"], ids=show)
def test_documented_python_parses_and_its_imports_exist(page, block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(("coordexp", "transformers")):
            module = importlib.import_module(node.module)
            missing = [a.name for a in node.names if not hasattr(module, a.name) and not submodule(node.module, a.name)]
            assert missing == [], node.module


def submodule(package: str, name: str) -> bool:
    return importlib.util.find_spec(f"{package}.{name}") is not None


@pytest.mark.parametrize(("page", "words"), of("pip"), ids=show)
def test_documented_extras_exist(page, words):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("page", TEXTS)
def test_links_resolve(page):
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", prose(page))
    for target, anchor in links:
        file = (REPOSITORY / page).parent / target if target else REPOSITORY / page
        assert file.exists(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE) if anchor else []
        slugs = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, f"{target}#{anchor}"


@pytest.mark.parametrize("page", TEXTS)
def test_files_named_in_prose_exist(page):
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./*-]*)`", prose(page))
    assert [name for name in named if not list(REPOSITORY.glob(name.rstrip("/")))] == []


@pytest.mark.parametrize("example", sorted((REPOSITORY / "docs/examples/plugins").glob("*.py")), ids=lambda p: p.name)
def test_architecture_page_prints_the_example_plugins(example):
    code = re.sub(r'\A""".*?"""\n\n', "", example.read_text(), flags=re.DOTALL)
    assert code in fenced("docs/architecture.md", "python")


# The field's own terms are image, ground truth, calibration split, overfit.
OTHER_TERMS = re.compile(
    r"\b(pictures?|(?<!ground )(?<!ground-)truth|held[- ]out|by heart|ablation arms?)\b", re.IGNORECASE
)


@pytest.mark.parametrize("page", TEXTS)
def test_pages_use_standard_terms(page):
    text = re.sub(r"`[^`]*`", "", prose(page))
    assert [m.group() for m in OTHER_TERMS.finditer(text)] == []


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", TEXTS)
def test_coordexp_commands_in_prose_exist(page, capsys):
    for command in sorted(set(re.findall(r"`coordexp ([a-z]+)\b[^`]*`", prose(page)))):
        with pytest.raises(SystemExit) as left:
            cli.main([command, "--help"])
        assert left.value.code == 0, f"coordexp {command}"


def test_index_lists_every_page():
    index = TEXTS["docs/index.md"]
    pages = {page.name for page in PAGES if page.parent == REPOSITORY / "docs"} - {"index.md"}
    assert {name for name in pages if f"]({name})" not in index} == set()


def test_troubleshooting_quotes_messages_of_the_code():
    ours = TEXTS["docs/troubleshooting.md"].split("## Snakemake, SLURM")[0]
    code = "".join(file.read_text() for file in (REPOSITORY / "src").rglob("*.py"))
    code = re.sub(r"\{[^{}]*\}", "...", re.sub(r'"\s*\n\s*f?"', "", code))
    messages = [
        m for row in re.findall(r"^\| (`.*?) \|", ours, flags=re.MULTILINE) for m in re.findall(r"`([^`]+)`", row)
    ]
    assert len(messages) > 40
    gone = [m for m in messages if not all(part.strip() in code for part in m.split("...") if part.strip())]
    assert gone == []


def copied(recipe: str) -> set[str]:
    """Files and folders of the repository that a container recipe takes in."""
    text = (REPOSITORY / "containers" / recipe).read_text()
    copies = re.findall(
        r"^COPY (.*) \S+$" if recipe == "Dockerfile" else r"^    (\S+) /opt/coordexp/\S+$", text, flags=re.MULTILINE
    )
    return {name for line in copies for name in line.split()}


@pytest.mark.parametrize("recipe", ["Dockerfile", "coordexp.def"])
def test_container_recipe_copies_existing_files_and_uses_the_constraints(recipe):
    text = (REPOSITORY / "containers" / recipe).read_text()
    assert {name for name in copied(recipe) if not (REPOSITORY / name).exists()} == set()
    assert "--constraint constraints.txt" in text and "python:3.11" in text
    assert "PYTHONNOUSERSITE=1" in text, "~/.local of whoever runs it would lie before these versions"


@pytest.mark.parametrize("recipe", ["Dockerfile", "coordexp.def"])
def test_files_copied_by_a_container_recipe_suffice_to_plan_the_demo(recipe, tmp_path):
    text = (REPOSITORY / "containers" / recipe).read_text().replace("\\\n", " ")
    if recipe == "Dockerfile":
        command = json.loads(re.search(r"^ENTRYPOINT (\[.*\])$", text, flags=re.MULTILINE)[1])
    else:
        command = shlex.split(re.search(r"^    exec (.*)$", text, flags=re.MULTILINE)[1].replace('"$@"', ""))
    root, work = tmp_path / "opt", tmp_path / "work"
    work.mkdir()
    for name in copied(recipe):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, root / name, **({"dirs_exist_ok": True} if copy is shutil.copytree else {}))
    words = [word.replace(IMAGE, str(root)) for word in command[1:]]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-m", command[0], *words, "--dry-run", "results/shapes_9/report.html"],
        cwd=work,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=clean,
    )
    assert done.returncode == 0 and "Job stats:" in done.stdout + done.stderr, done.stderr[-3000:]


def test_notices_list_every_dependency():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = chain(project["dependencies"], *project["optional-dependencies"].values())
    named = set(re.findall(r"`([\w-]+)`", TEXTS["docs/notices.md"]))
    assert {re.match(r"[\w.-]+", line)[0] for line in lines} - named == set()


def test_rule_graph_figure_is_up_to_date(tmp_path):
    spec = importlib.util.spec_from_file_location("make_dag", REPOSITORY / "docs" / "make_dag.py")
    make_dag = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_dag)
    assert make_dag.FIGURE.read_text() == make_dag.svg(make_dag.rulegraph(tmp_path)), "run: python docs/make_dag.py"


def test_citation_matches_the_version():
    from coordexp import __version__

    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert cited["version"] == __version__ and cited["license"] == "Apache-2.0" and cited["authors"]
    catalog = yaml.safe_load((REPOSITORY / ".snakemake-workflow-catalog.yml").read_text())
    assert catalog["usage"]["software-stack-deployment"]["conda"] is True


def test_the_table_of_faults_has_a_row_per_rule():
    """Without measurements, its cells are empty."""
    rules = {path.stem for path in (REPOSITORY / "workflow_scripts").glob("*.py")} - {"__init__", "arguments"}
    rows = re.findall(r"^\| `(\w+)`", (REPOSITORY / "docs/faults.md").read_text(), flags=re.MULTILINE)
    assert set(rows) == rules


@pytest.mark.parametrize("name", ["make_ablation", "make_faults"])
def test_generated_result_pages_are_up_to_date(name):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), f"run: python docs/{name}.py"
