"""The export of the ledger: the rows of each closed day as Parquet files, written by a process of its own.

`service` decides when, in the gateway. `process` does it, in a process of low priority: what it loads (PyArrow takes
50 MB) and what it computes never is in the gateway's.
"""
