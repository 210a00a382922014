"""The flags of every command: a dataclass each, beside the configs that the Python API takes. Loads no torch."""
