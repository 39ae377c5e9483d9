"""Every command in the documentation parses and plans; every link, file and message that it names is there."""

import argparse
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from coordexp import cli

REPOSITORY = Path(__file__).resolve().parents[2]
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


def show(value) -> str:
    return value if isinstance(value, str) else " ".join(value)[:70]


def test_every_command_is_one_that_is_checked_here():
    known = {"snakemake", "coordexp", "make", "python"} | OTHERS
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
def test_make_has_the_target(page, words):
    makefile = (REPOSITORY / "Makefile").read_text()
    assert all(re.search(rf"^{re.escape(word)}:", makefile, flags=re.MULTILINE) for word in words[1:])


@pytest.mark.parametrize(("page", "words"), of("python"), ids=show)
def test_python_runs_a_file_or_module_that_is_there(page, words):
    if words[1] == "-m":
        top = words[2].split(".")[0]
        assert top in ("sglang",) or importlib.util.find_spec(words[2]), words[2]
    else:
        assert (REPOSITORY / words[1]).is_file()


@pytest.mark.parametrize(("page", "words"), of("snakemake"), ids=show)
def test_snakemake_knows_the_options(page, words, monkeypatch):
    from snakemake.cli import parse_args

    profile = words[words.index("--workflow-profile") + 1] if "--workflow-profile" in words else ""
    plugin = "snakemake_executor_plugin_" + ("slurm" if profile.endswith("slurm") else "cluster_generic")
    if profile and importlib.util.find_spec(plugin) is None:
        pytest.skip("the executor plugin is not installed")
    monkeypatch.chdir(REPOSITORY)
    _, args = parse_args([word for word in words[1:] if word != "..."])
    for file in args.configfile or []:
        assert (REPOSITORY / file).exists() or Path(file).name.startswith("my")


def targets(words: list[str]) -> list[str]:
    return [word for word in words[1:] if re.match(r"(results|resources)/", word)]


def test_snakemake_plans_every_target(tmp_path):
    wanted = sorted({target for _, words in of("snakemake") for target in targets(words)})
    assert "results/lvis_768/eval.json" in wanted
    assert dry_run(tmp_path, "--", *wanted) == 0


@pytest.mark.parametrize("words", [words for _, words in of("snakemake") if "--config" in words], ids=show)
def test_snakemake_takes_the_override(words, tmp_path):
    wanted = targets(words) or ["results/shapes_9/eval.json"]
    assert dry_run(tmp_path, "--config", words[words.index("--config") + 1], "--", *wanted) == 0


def dry_run(folder: Path, *arguments: str) -> int:
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--directory", str(folder)]
    command += ["--snakefile", str(REPOSITORY / "Snakefile"), "--configfile", str(REPOSITORY / "config/config.yaml")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, check=False)
    print(done.stdout[-3000:], done.stderr[-3000:])
    return done.returncode


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
    ours = TEXTS["docs/troubleshooting.md"].split("## Messages of Snakemake")[0]
    code = "".join(file.read_text() for file in (REPOSITORY / "src").rglob("*.py"))
    code = re.sub(r"\{[^{}]*\}", "...", re.sub(r'"\s*\n\s*f?"', "", code))
    messages = [
        m for row in re.findall(r"^\| (`.*?) \|", ours, flags=re.MULTILINE) for m in re.findall(r"`([^`]+)`", row)
    ]
    assert len(messages) > 40
    gone = [m for m in messages if not all(part.strip() in code for part in m.split("...") if part.strip())]
    assert gone == []


@pytest.mark.parametrize("recipe", ["Dockerfile", "coordexp.def"])
def test_a_container_copies_what_is_there_and_what_the_workflow_reads(recipe):
    text = (REPOSITORY / "containers" / recipe).read_text()
    copied = re.findall(
        r"^COPY (.*) \S+$" if recipe == "Dockerfile" else r"^    (\S+) /opt/coordexp/\S+$", text, flags=re.MULTILINE
    )
    names = {name for line in copied for name in line.split()}
    assert {name for name in names if not (REPOSITORY / name).exists()} == set()
    assert {"Snakefile", "rules", "workflow_scripts", "config", "profiles", "envs", "src", "constraints.txt"} <= names
    assert "--constraint constraints.txt" in text and "python:3.11" in text


def test_the_citation_is_of_this_version():
    import yaml

    from coordexp import __version__

    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert cited["version"] == __version__ and cited["license"] == "Apache-2.0" and cited["authors"]
    catalog = yaml.safe_load((REPOSITORY / ".snakemake-workflow-catalog.yml").read_text())
    assert catalog["usage"]["software-stack-deployment"]["conda"] is True
