"""`python -m dreamforge` is the command `dreamforge`."""

import sys

from dreamforge.cli import main

sys.exit(main())
