"""Neighbour search by FAISS: index.py the class, structures.py FAISS, rows.py the documents, plan.py what "auto" takes,
knn.py the graph of all rows, files.py what is saved."""

from .index import NeighborIndex

__all__ = ["NeighborIndex"]
