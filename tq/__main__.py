"""`python -m tq`."""

import sys

from tq.cli import main

sys.exit(main())
