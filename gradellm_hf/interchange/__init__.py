"""Explanations in other forms: saved files, tables, and Inseq's files.

May import `results`, `visualization`, `text`, `checks`, `configuration` and `errors` only.
"""

from .files import load_explanations
from .inseq import load_inseq, save_inseq
from .tables import save_parquet, to_dataframe

__all__ = ["load_explanations", "load_inseq", "save_inseq", "save_parquet", "to_dataframe"]
