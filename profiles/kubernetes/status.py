#!/usr/bin/env python3
"""State of a Kubernetes Job as Snakemake expects it: success, failed or running."""

from __future__ import annotations

import json
import os
import subprocess
import sys


def state(name: str) -> str:
    """`failed` for a Job that no longer exists; `running` while the API server does not answer."""
    namespace = ["--namespace", os.environ["COORDEXP_NAMESPACE"]] if os.environ.get("COORDEXP_NAMESPACE") else []
    command = ["kubectl", *namespace, "get", "job", name, "--output", "json"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode:
        return "failed" if "NotFound" in asked.stderr else "running"
    conditions = json.loads(asked.stdout).get("status", {}).get("conditions") or []
    holding = {condition["type"] for condition in conditions if condition["status"] == "True"}
    if "Complete" in holding:
        return "success"
    return "failed" if "Failed" in holding else "running"


if __name__ == "__main__":
    print(state(sys.argv[1]))
