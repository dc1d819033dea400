"""`make quickstart`: the same as `hgkd quickstart`, which this file calls; see `src/hgkd_hf/cli/quickstart.py`."""

from hgkd_hf.cli.errors import run_script
from hgkd_hf.cli.quickstart import main

if __name__ == "__main__":
    run_script(main)
