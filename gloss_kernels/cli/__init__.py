"""The command `gloss-kernels`: main.py reads the command line, and each command has its file.

info, graph and propagate are here, finetune is a package of its own; they share errors, options, files, terminal and
components. Nothing is imported here: finetune needs errors and options of this package, and main needs finetune.
"""
