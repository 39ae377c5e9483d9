# What Snakemake prints when the configuration is invalid or a job fails: cause, log and remedy, and no traceback.
import re

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake_interface_logger_plugins.common import LogEvent


class WorkflowFailed(WorkflowError):
    """An error that Snakemake prints without a traceback."""

    __traceback__ = property(lambda self: None, lambda self, value: None)


def _shorten(record):
    """Remove the shell command with the whole recipe, and tracebacks of functions in rules; False drops the message."""
    event = getattr(record, "event", None)
    if event == LogEvent.JOB_ERROR:
        record.shellcmd = None
    elif event == LogEvent.ERROR:
        # It repeats the shell command of a failed job, which has an error of its own.
        if "CalledProcessError in file" in record.getMessage():
            return False
        record.msg = re.sub(r'\nTraceback:\n(  File "[^\n]*\n?)*', "", record.getMessage())
        record.args = None
    return True


if workflow.is_main_process:
    logger.addFilter(_shorten)


onerror:
    from coordexp.runtime.failures import explain

    # Interrupted jobs are still listed as running.
    jobs = sorted({*workflow.scheduler.failed, *workflow.scheduler.running}, key=str)
    raise WorkflowFailed("\n".join(explain(job.rule.name, job.wildcards_dict, list(job.log)) for job in jobs))
