"""`python -m polyspace.doctor`."""

from polyspace.config import run_command
from polyspace.doctor import main

raise SystemExit(run_command(main))
