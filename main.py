"""python main.py --work_dir outputs --sequence pretrain: run the phases of --sequence in order."""

from polyspace.config import run_command
from polyspace.train.run import main

if __name__ == "__main__":
    raise SystemExit(run_command(main))
