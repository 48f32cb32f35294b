"""python -m psp_fast COMMAND: the command line without the installed script."""

import sys

from psp_fast.cli import main

sys.exit(main())
