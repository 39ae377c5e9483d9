#!/bin/sh
# State of the SLURM job $1 as Snakemake expects it: success, failed or running.
state=$(scontrol -o show job "$1" 2>/dev/null | sed -n 's/.*JobState=\([A-Z_]*\).*/\1/p')
# The controller forgets finished jobs; the accounting database does not.
[ -n "$state" ] || state=$(sacct -n -X -j "$1" -o State 2>/dev/null | awk 'NR == 1 { print $1 }')
case "$state" in
  COMPLETED) echo success ;;
  BOOT_FAIL | CANCELLED* | DEADLINE | FAILED | NODE_FAIL | OUT_OF_ME* | PREEMPTED | REVOKED | TIMEOUT) echo failed ;;
  *) echo running ;; # pending, running, requeued, or no answer at the moment
esac
