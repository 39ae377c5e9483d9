"""Every command in the documentation parses and plans; every link, file and message that it names is there."""

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
from itertools import chain
from pathlib import Path

import pytest
import yaml

from coordexp import cli

REPOSITORY = Path(__file__).resolve().parents[3]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
TEXTS = {page.relative_to(REPOSITORY).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
FOLDERS = ("benchmarks", "config", "containers", "docs", "envs", "profiles", "rules", "src", "tests")
IMAGE = "/opt/coordexp"  # where containers/ put this repository

# Programs that are not ours: the shell's own, and servers that read our checkpoints.
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


def test_every_command_is_one_that_is_checked_here():
    known = {"snakemake", "coordexp", "make", "python", "pytest", "bash"} | OTHERS
    assert [(page, words) for page, words in commands() if words[0] not in known] == []
    assert len(of("snakemake")) >= 8 and len(of("coordexp")) >= 5


@pytest.mark.parametrize(("page", "words"), of("coordexp"), ids=show)
def test_coordexp_knows_the_command_and_its_options(page, words, monkeypatch):
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
def test_make_plans_the_target(page, words):
    done = subprocess.run(
        ["make", "--dry-run", *words[1:]], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("page", "words"), of("pytest"), ids=show)
def test_pytest_knows_the_mark(page, words):
    marks = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    assert words[1] == "-m" and words[2] in {mark.split(":")[0] for mark in marks}


@pytest.mark.parametrize(("page", "words"), of("python"), ids=show)
def test_python_runs_a_file_or_module_that_is_there(page, words):
    if words[1] == "-m":
        top = words[2].split(".")[0]
        assert top in ("sglang",) or importlib.util.find_spec(words[2]), words[2]
    else:
        assert (REPOSITORY / words[1]).is_file()


@pytest.mark.parametrize(("page", "words"), of("bash"), ids=show)
def test_bash_runs_a_script_that_is_there(page, words):
    assert (REPOSITORY / words[1]).is_file()


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder that looks like a fresh clone; the page's own YAML is `my.yaml`."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("Snakefile", "rules", "config", "profiles", "envs", "src", "workflow_scripts"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


@pytest.mark.parametrize(("page", "words"), plans(of("snakemake")), ids=show)
def test_snakemake_plans_the_command_as_it_stands(page, words, clone):
    if "--report" in words:
        pytest.skip("needs results: tests/workflow/test_standards.py runs it")
    profile = words[words.index("--workflow-profile") + 1] if "--workflow-profile" in words else ""
    plugin = "snakemake_executor_plugin_" + ("slurm" if profile.endswith("slurm") else "cluster_generic")
    if profile and importlib.util.find_spec(plugin) is None:
        pytest.skip("the executor plugin is not installed")
    own = [block for block in fenced(page, "yaml") if set(yaml.safe_load(block)) & {"data", "models", "runs"}]
    (clone / "my.yaml").write_text(own[0] if own else "{}")
    command = [sys.executable, "-m", "snakemake", "--dry-run", *words[1:]]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Job stats:" in done.stdout + done.stderr


@pytest.mark.parametrize("page", TEXTS)
def test_options_of_snakemake_in_the_text_exist(page, monkeypatch):
    from snakemake.cli import parse_args

    monkeypatch.chdir(REPOSITORY)
    for command in sorted(set(re.findall(r"`snakemake ([^`]*)`", prose(page)))):
        words = [word for word in shlex.split(command) if word != "..."]
        parse_args(words)


def fenced(page: str, kind: str) -> list[str]:
    """Blocks of a language in a page."""
    return re.findall(rf"^```{kind}\n(.*?)^```", TEXTS.get(page, ""), flags=re.DOTALL | re.MULTILINE)


BLOCKS = [(page, kind, block) for page in TEXTS for kind in ("yaml", "python", "json") for block in fenced(page, kind)]


@pytest.mark.parametrize(("page", "block"), [(p, b) for p, kind, b in BLOCKS if kind == "yaml"], ids=show)
def test_configuration_in_a_page_is_valid(page, block, tmp_path):
    from coordexp.config.settings import Settings, over_defaults
    from coordexp.datasets import mixture as fusion
    from coordexp.recipe import merge

    values = yaml.safe_load(block)
    if "sources" in values:
        (tmp_path / "mixture.yaml").write_text(block)
        assert len(fusion.files(tmp_path / "mixture.yaml")) == len(values["sources"])
        return
    settings = Settings.load(over_defaults(merge(values, {}), REPOSITORY), REPOSITORY)
    for name, entry in values.get("runs", {}).items():
        run = name if re.search(r"_\d+$", name) or isinstance(entry.get("data"), str) else f"{name}_768"
        assert settings.recipe(run).training
        assert settings.run(run).model in settings.config["models"]


@pytest.mark.parametrize(("page", "block"), [(p, b) for p, kind, b in BLOCKS if kind == "python"], ids=show)
def test_python_in_a_page_parses_and_finds_what_it_imports(page, block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(("coordexp", "transformers")):
            module = importlib.import_module(node.module)
            missing = [a.name for a in node.names if not hasattr(module, a.name) and not submodule(node.module, a.name)]
            assert missing == [], node.module


def submodule(package: str, name: str) -> bool:
    return importlib.util.find_spec(f"{package}.{name}") is not None


@pytest.mark.parametrize(("page", "words"), of("pip"), ids=show)
def test_pip_installs_extras_that_are_there(page, words):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"\[([\w,]+)\]", " ".join(words)):
        assert set(extras.split(",")) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", prose(page))
    for target, anchor in links:
        file = (REPOSITORY / page).parent / target if target else REPOSITORY / page
        assert file.exists(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE) if anchor else []
        slugs = {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, f"{target}#{anchor}"


@pytest.mark.parametrize("page", TEXTS)
def test_every_file_that_is_named_is_there(page):
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./*-]*)`", prose(page))
    assert [name for name in named if not list(REPOSITORY.glob(name.rstrip("/")))] == []


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", TEXTS[page], flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", TEXTS)
def test_commands_in_the_text_exist(page, capsys):
    for command in sorted(set(re.findall(r"`coordexp ([a-z]+)\b[^`]*`", prose(page)))):
        with pytest.raises(SystemExit) as left:
            cli.main([command, "--help"])
        assert left.value.code == 0, f"coordexp {command}"


def test_every_page_stands_in_the_index():
    index = TEXTS["docs/index.md"]
    pages = {page.name for page in PAGES if page.parent.name == "docs"} - {"index.md"}
    assert {name for name in pages if f"]({name})" not in index} == set()


def test_messages_are_those_of_the_code():
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
def test_a_container_copies_what_is_there_in_the_versions_of_the_constraints(recipe):
    text = (REPOSITORY / "containers" / recipe).read_text()
    assert {name for name in copied(recipe) if not (REPOSITORY / name).exists()} == set()
    assert "--constraint constraints.txt" in text and "python:3.11" in text
    assert "PYTHONNOUSERSITE=1" in text, "~/.local of whoever runs it would lie before these versions"


@pytest.mark.parametrize("recipe", ["Dockerfile", "coordexp.def"])
def test_what_a_container_copies_is_enough_to_plan_the_demo(recipe, tmp_path):
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


def test_every_package_that_is_named_has_its_licence_in_the_notices():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = chain(project["dependencies"], *project["optional-dependencies"].values())
    named = set(re.findall(r"`([\w-]+)`", TEXTS["docs/notices.md"]))
    assert {re.match(r"[\w.-]+", line)[0] for line in lines} - named == set()


def test_the_image_of_the_rules_is_up_to_date(tmp_path):
    spec = importlib.util.spec_from_file_location("make_dag", REPOSITORY / "docs" / "make_dag.py")
    make_dag = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_dag)
    assert make_dag.PICTURE.read_text() == make_dag.svg(make_dag.rulegraph(tmp_path)), "run: python docs/make_dag.py"


def test_the_citation_is_of_this_version():
    from coordexp import __version__

    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert cited["version"] == __version__ and cited["license"] == "Apache-2.0" and cited["authors"]
    catalog = yaml.safe_load((REPOSITORY / ".snakemake-workflow-catalog.yml").read_text())
    assert catalog["usage"]["software-stack-deployment"]["conda"] is True


@pytest.mark.parametrize("name", ["make_ablation", "make_faults"])
def test_pages_of_measured_numbers_are_those_of_the_files(name):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), f"run: python docs/{name}.py"
