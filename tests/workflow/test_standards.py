"""What users of Snakemake expect: a report, a catalogue entry, local rules, and commands that run as documented."""

import re
import shlex
import zipfile
from pathlib import Path

import pytest
import yaml

from coordexp import cli

REPOSITORY = Path(__file__).resolve().parents[2]
RUN = "results/shapes_9"


def test_snakemake_s_own_report_holds_the_pages_and_the_curves(finished):
    finished.run("--report", "report.zip")
    with zipfile.ZipFile(finished.path("report.zip")) as archive:
        names = archive.namelist()
        page = "".join(archive.read(name).decode() for name in names if name.endswith(("report.html", ".js")))
    assert any(name.endswith("report.html") for name in names)
    assert {"Evaluation", "Training"} <= set(re.findall(r"Evaluation|Training", page))
    assert any(name.endswith("loss.png") for name in names), names


def test_the_catalogue_entry_says_what_is_there():
    entry = yaml.safe_load((REPOSITORY / ".snakemake-workflow-catalog.yml").read_text())
    usage = entry["usage"]
    assert set(usage) <= {"mandatory-flags", "software-stack-deployment", "report"}
    assert set(usage["mandatory-flags"]) == {"desc", "flags"}
    rules = "".join(file.read_text() for file in (REPOSITORY / "rules").glob("*.smk"))
    assert usage["software-stack-deployment"]["conda"] == ("conda:" in rules)
    assert usage["software-stack-deployment"]["apptainer"] == ("container:" in rules)
    assert usage["report"] == ("report(" in rules)
    # The catalogue lists a repository only with these at the top.
    assert (REPOSITORY / "README.md").exists() and (REPOSITORY / "Snakefile").exists()
    # With both of these it would advertise snakedeploy, whose module at a URL finds neither library nor defaults.
    assert not all((REPOSITORY / name).exists() for name in ("workflow/Snakefile", "config/README.md"))
    assert "do not use `snakedeploy" in usage["mandatory-flags"]["desc"]


def test_an_override_on_the_command_line_has_its_type(finished):
    done = finished.run("--dry-run", "--printshellcmds", "--config", "report={gallery: 3}", "--", f"{RUN}/report.html")
    assert '"gallery":3' in done.stdout + done.stderr


def test_gathering_stays_beside_snakemake():
    rules = (REPOSITORY / "rules" / "eval.smk").read_text()
    local = re.search(r"^localrules:\n((?:    \w+,\n)+)", rules, flags=re.MULTILINE)
    assert re.findall(r"\w+", local[1]) == ["gather"]


def documented(*commands: str) -> list[list[str]]:
    """Words of the `coordexp` commands in the pages that read the demo's results."""
    found = []
    for page in [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]:
        for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["coordexp"] and words[1] in commands and any("shapes_9" in word for word in words):
                    found.append(words[1:])
    return found


@pytest.mark.parametrize("words", documented("validate", "doctor", "summary"), ids=" ".join)
def test_a_documented_command_runs_on_the_demo(words, finished, monkeypatch):
    monkeypatch.chdir(finished.folder)
    assert cli.main(words) == 0


def test_some_documented_commands_were_run():
    assert len(documented("validate", "doctor", "summary")) >= 2
