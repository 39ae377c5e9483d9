"""Command `serve`: an OpenAI-compatible server of vLLM whose answers always parse."""

from __future__ import annotations

import argparse
import ipaddress
import os
import shlex
import sys
from collections.abc import Sequence

from coordexp.cli.arguments import Commands, subparser


def add(commands: Commands) -> None:
    """Add the command and its options."""
    parser = subparser(
        commands,
        "serve",
        "Serve a merged checkpoint with vLLM.\n\nStarts `vllm serve` with CoordExp's plug-in: every answer follows the "
        "grammar, and\nits log probabilities contain scores and coordinates (docs/serving.md).",
        "coordexp serve results/lvis_768/merged",
        "coordexp serve results/lvis_768/merged --port 8001 --vllm='--max-num-seqs 64 --api-key SECRET'",
    )
    parser.add_argument("model", metavar="MODEL", help="merged checkpoint: a folder, or owner/name on the hub")
    parser.add_argument("--revision", help="branch, tag or commit of a model on the hub")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: 8000)")
    parser.add_argument("--polygons", action="store_true", help="allow polygons in answers (data.geometry: poly)")
    parser.add_argument(
        "--vllm",
        type=shlex.split,
        default=[],
        metavar="OPTIONS",
        help="further options of `vllm serve`, as one quoted argument",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Replace this process by the server."""
    command, variables = server_command(args)
    variables.pop("VLLM_LOGGING_LEVEL", None)
    if not _is_loopback(args.host) and not has_key(args.vllm):
        print(f"serve: other machines can reach {args.host}, and --api-key is not set", file=sys.stderr, flush=True)
    os.execve(command[0], command, {"VLLM_LOGGING_LEVEL": "INFO", **os.environ, **variables})


def server_command(args: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """The command that serves the checkpoint as it was trained, and its environment variables."""
    from coordexp.inference.checkpoint_settings import settings_of
    from coordexp.inference.options import PredictOptions
    from coordexp.inference.vllm_engine import settings
    from coordexp.modeling.checkpoint_safety import check_checkpoint
    from coordexp.modeling.checksums import verify_checksums
    from coordexp.modeling.hub import checkpoint_folder

    settings.check_installed()
    folder = check_checkpoint(checkpoint_folder(args.model, args.revision))
    verify_checksums(folder)
    recorded = settings_of(folder, "serve")
    options = PredictOptions(
        temperature=recorded.temperature,
        geometry=("bbox_2d", "poly") if args.polygons else recorded.geometry or ("bbox_2d",),
        poly_max_points=recorded.poly_max_points or PredictOptions().poly_max_points,
    )
    budget = None
    if recorded.factor and recorded.min_blocks and recorded.max_blocks:
        tile = recorded.factor**2
        budget = {"shortest_edge": recorded.min_blocks * tile, "longest_edge": recorded.max_blocks * tile}
    given = ["--host", args.host, "--port", str(args.port), "--served-model-name", str(args.model)]
    arguments = settings.serve_arguments(folder, options, recorded.style, budget)
    command = [sys.executable, *settings.serve_program(folder), *given, *arguments, *args.vllm]
    return command, settings.environment() | {settings.COORDINATES: recorded.style.coordinates}


def has_key(options: Sequence[str]) -> bool:
    """Whether clients need a key: from the options of vLLM, or from its environment variable."""
    given = any(option.split("=")[0] == "--api-key" for option in options)
    return given or bool(os.environ.get("VLLM_API_KEY"))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
