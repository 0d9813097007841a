"""Experiments: `python -m experiments {list,train,evaluate,sample,bench}`."""
