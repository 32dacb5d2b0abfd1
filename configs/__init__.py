"""Hydra config groups, installed as ``ssl_toolkit.configs``: one YAML per choice."""
