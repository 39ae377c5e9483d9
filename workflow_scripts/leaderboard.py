"""Rule leaderboard: runs beside published figures, as a page."""

from coordexp.reporting.leaderboard import write_leaderboard
from workflow_scripts.arguments import arguments, job, path

args = arguments(__doc__, evaluated=[path], page=path)
with job(args.page):
    write_leaderboard(args.page, evaluated={file.parent.name: file for file in args.evaluated})
