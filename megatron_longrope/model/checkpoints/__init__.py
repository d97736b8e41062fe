"""Megatron checkpoints on disk, ours and Megatron-LM's, read without running anything in them.

Parts of a torch_dist checkpoint are pickles, and unpickling can run any code. Every pickle here is
read through an unpickler with a closed list of names, or one that imports nothing at all.
"""
