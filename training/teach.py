"""`hgkd teach` as a file, for `accelerate launch`: see `hgkd_hf.cli.teach`."""

import sys

sys.path.pop(0)  # this folder's evaluate.py would hide the package of that name

from hgkd_hf.cli.errors import run_script
from hgkd_hf.cli.teach import main

if __name__ == "__main__":
    run_script(main)
