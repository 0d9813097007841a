"""Experiments: `python -m experiments {list,train,evaluate,sample,table,bench}`."""
