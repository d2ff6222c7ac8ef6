"""Run the `sohes` command with the arguments given and say on stderr, as JSON, how much memory it and its largest child process took."""

from __future__ import annotations

import json
import resource
import sys

from sohes_cli.cli import main

if __name__ == "__main__":
    try:
        main()
    finally:
        kilobytes = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        megabytes = [round(value / 1000) for value in kilobytes]
        print(json.dumps({"main_process_mb": megabytes[0], "largest_worker_mb": megabytes[1]}), file=sys.stderr)
