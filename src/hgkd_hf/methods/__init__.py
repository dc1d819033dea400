"""A method is one folder: its `settings.py`, `modeling.py` (config and model) and `method.py` (what commands build).

`registry.METHODS` has them by name.
"""
