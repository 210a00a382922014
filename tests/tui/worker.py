"""Stands in for `tq quantize|bench|inspect ... --json`: the words of its argv say what it does.

python worker.py inspect FILE --json           answers at once
python worker.py bench FILE --json             says a line, waits until FILE.go exists, answers
python worker.py quantize wrong --json         says a sentence, exits with 2
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

RESULTS = json.loads(Path(__file__).with_name("results.json").read_text())


def main() -> None:
    """Say, wait, answer."""
    command, file = sys.argv[1:3]
    print("float accuracy on 359 test images ...", file=sys.stderr)
    if file == "wrong":
        sys.exit("tq: expected a model file, got [bold]wrong[/]")
    try:
        while command == "bench" and not Path(f"{file}.go").exists():
            time.sleep(0.01)
    except KeyboardInterrupt:
        print("tq: interrupted", file=sys.stderr)
        sys.exit(130)
    print(json.dumps(RESULTS[command]))


if __name__ == "__main__":
    main()
