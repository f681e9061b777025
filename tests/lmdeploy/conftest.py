"""`contract` and `native` run in LMDeploy's environment (`test_contract.py`), nowhere else."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("lmdeploy") else ["contract", "native"]
