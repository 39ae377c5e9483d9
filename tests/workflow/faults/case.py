"""A rule about to run in a folder of its own, and what has to be true after a fault."""

import shutil
from pathlib import Path

from scene import Scene, contents, fill

GROWING = "downloads.lock.json"  # has a line for each file that is there


class Case:
    """The end of an undisturbed run is copied; `names` (the outputs and what lies beside them) are to be made again.

    `entry` is the process that does the work, `last` its last write and `usual` its CPU seconds when undisturbed.
    """

    def __init__(
        self,
        whole: Scene,
        folder: Path,
        outputs: tuple[str, ...],
        names: tuple[str, ...],
        entry: str,
        usual: float,
        last: int = -1,
    ):
        self.outputs, self.names, self.entry, self.usual, self.last = outputs, names, entry, usual, last
        _fill(whole.folder, folder)
        for name in names:
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        self.scene = Scene(folder, whole.repository, whole.changes)
        self.expected = contents(whole.folder, names)
        self.traces = []

    def start(self, **fault):
        process = self.scene.start(*self.outputs, fault=fault or None)
        self.traces.append(self.scene.trace)
        return process

    def run(self, **fault):
        code, text = self.scene.run(*self.outputs, fault=fault or None)
        self.traces.append(self.scene.trace)
        return code, text

    def held(self, when):
        """Snakemake with the rule's process stopped while it writes."""
        process = self.start(**self.scene.hold(self.entry, **when))
        self.scene.wait_for(self.scene.reached, process)
        return process

    def take_over(self, release):
        """Unlock after a killed Snakemake and start the same command; `release` its orphan when that is waited for."""
        code, text = self.scene.run(*self.outputs)
        assert code != 0 and "LockException" in text and "--unlock" in text
        code, text = self.scene.run("--unlock")
        assert code == 0, text
        again = self.start()
        logs = self.scene.folder / "results"
        waiting = "is working on this; waiting for it to finish"
        self.scene.wait_for(lambda: any(waiting in log.read_text() for log in logs.rglob("*.log")), again)
        release()
        assert again.wait(900) == 0, self.scene.log.read_text()
        self.check_result()

    def check_nothing_is_half_written(self):
        found = contents(self.scene.folder, self.names)
        whole = {name for name in found if "/." not in name and not name.endswith(GROWING)}
        assert {name for name in whole if self.expected.get(name) != found[name]} == set()

    def check_a_full_disk(self, process, disk, release):
        """Fill the disk under the stopped process and let it go on: it says so, and ends well once there is room."""
        fill(disk)
        release()
        assert process.wait(900) != 0
        assert "the disk is full" in self.scene.log.read_text(), self.scene.log.read_text()
        self.check_nothing_is_half_written()
        (disk / "filler").unlink()
        self.check_the_same_command_ends_well()

    def check_the_same_command_ends_well(self):
        code, text = self.run()
        assert code == 0, text
        self.check_result()

    def check_result(self):
        found = contents(self.scene.folder, self.names)
        assert found.keys() == self.expected.keys()
        assert [name for name in found if found[name] != self.expected[name]] == []
        rest = [p for top in ("results", "resources") for p in (self.scene.folder / top).rglob(".*")]
        assert [p for p in rest if p.name.endswith((".part", ".lock", ".old", ".rows", ".chunks"))] == []

    def lost(self):
        """CPU seconds beyond those of the undisturbed job."""
        return max(0.0, sum(self.scene.spent(trace) for trace in self.traces) - self.usual)


def _fill(source, target):
    target.mkdir(parents=True, exist_ok=True)
    left_out = {".snakemake": ("log", "locks", "incomplete", "tensorboard"), "results": ("checkpoints",)}
    for name in ("results", "resources", ".snakemake"):
        if (source / name).exists():
            ignore = shutil.ignore_patterns(*left_out.get(name, ()))
            shutil.copytree(source / name, target / name, ignore=ignore, dirs_exist_ok=True)
