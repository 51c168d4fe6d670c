"""Explanations in other forms: files of either kind, tables, and Inseq's files. May import `results` and what is below."""

from .inseq import load_explanations, load_inseq, save_inseq, save_parquet, to_dataframe

__all__ = ["load_explanations", "load_inseq", "save_inseq", "save_parquet", "to_dataframe"]
