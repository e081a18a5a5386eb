"""`gloss-kernels graph` and `gloss-kernels propagate`: graph.py and propagate.py have their options, run_graph.py and
run_propagate.py what they do, shared.py what both need."""
