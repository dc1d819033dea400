"""`hgkd pull` as a file, for `accelerate launch`: see `hgkd_hf.cli.pull`."""

import sys

sys.path.pop(0)  # this folder's evaluate.py would hide the package of that name
sys.argv[0] = "hgkd"  # what it is, whatever file it is called by

from hgkd_hf.cli.errors import run_script
from hgkd_hf.cli.pull import main

if __name__ == "__main__":
    run_script(main)
