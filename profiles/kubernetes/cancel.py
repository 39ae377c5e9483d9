#!/usr/bin/env python3
"""Delete Kubernetes Jobs by name, with their pods; does not wait for the pods to end."""

import os
import subprocess
import sys

namespace = ["--namespace", os.environ["COORDEXP_NAMESPACE"]] if os.environ.get("COORDEXP_NAMESPACE") else []
command = ["kubectl", *namespace, "delete", "job", "--wait=false", "--ignore-not-found", *sys.argv[1:]]
sys.exit(subprocess.run(command, check=False).returncode)
