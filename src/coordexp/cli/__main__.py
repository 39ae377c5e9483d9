"""`python -m coordexp.cli`."""

import sys

from coordexp.cli import main

sys.exit(main())
