"""Train models one after the other, each in a forked process: ms-swift is imported once, which is most of the time.

python family_training.py '[["train", "--model", ...], ...]'    # arguments of `coordexp`
"""

import json
import os
import sys
from pathlib import Path

from coordexp import cli
from coordexp.training import launch
from coordexp.training.ms_swift import eval_worker, worker


def in_this_process(command: list[str], env: dict[str, str], checkpoints: Path) -> tuple[int, bool]:
    """What `launch` starts as a process of its own."""
    os.environ.update(env)
    worker.run(Path(command[-1]), eval_worker.register)
    return 0, False


def main() -> None:
    import swift.arguments
    import swift.pipelines.train.sft  # noqa: F401

    from coordexp.training.ms_swift import eval_plugin, plugin  # noqa: F401

    launch.supervise = in_this_process
    for words in json.loads(sys.argv[1]):
        child = os.fork()
        if child == 0:
            sys.exit(cli.main(words))
        if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            sys.exit(f"exit code {code}: {words}")


if __name__ == "__main__":
    main()
