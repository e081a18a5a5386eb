"""The native module. ``cpu`` and ``cuda`` have the same functions; ``Address`` is a tensor's data_ptr(), 0 for null.

After the arguments listed here ``cpu`` takes ``threads`` (cosine_topk: also ``report``); ``cuda`` takes ``device`` and
``stream`` and, where there is a function NAME_workspace, ``workspace`` (cosine_topk: also ``status``). All by name.
"""

from typing import Any, Protocol, TypeAlias

Address: TypeAlias = int
View: TypeAlias = tuple[Address, int, int, int, int]  # address, dtype, rows, columns, row stride

class Core(Protocol):
    def cosine_topk(
        self,
        *,
        queries: View,
        corpus: View,
        k: int,
        exclude_self: bool,
        hint: Address,
        hint_k: int,
        values: Address,
        indices: Address,
        **tail: Any,
    ) -> Any: ...
    def cosine_topk_backward(
        self,
        *,
        queries: View,
        corpus: View,
        k: int,
        is_double: bool,
        indices: Address,
        grad_values: Address,
        grad_queries: Address,
        grad_corpus: Address,
        **tail: Any,
    ) -> None: ...
    def knn_structure(
        self,
        *,
        n: int,
        k: int,
        indices: Address,
        symmetrize: str,
        capacity: int,
        crow: Address,
        col: Address,
        forward: Address,
        reverse: Address,
        **tail: Any,
    ) -> None: ...
    def combine_edges(
        self,
        *,
        nnz: int,
        num_weights: int,
        is_double: bool,
        forward: Address,
        reverse: Address,
        symmetrize: str,
        weights: Address,
        values: Address,
        **tail: Any,
    ) -> None: ...
    def combine_edges_backward(
        self,
        *,
        nnz: int,
        num_weights: int,
        is_double: bool,
        forward: Address,
        reverse: Address,
        symmetrize: str,
        weights: Address,
        grad_values: Address,
        grad_weights: Address,
        **tail: Any,
    ) -> None: ...
    def normalize_edges(
        self,
        *,
        n: int,
        capacity: int,
        is_double: bool,
        normalization: str,
        crow: Address,
        col: Address,
        values: Address,
        normalized: Address,
        **tail: Any,
    ) -> None: ...
    def normalize_edges_backward(
        self,
        *,
        n: int,
        capacity: int,
        is_double: bool,
        normalization: str,
        crow: Address,
        col: Address,
        values: Address,
        grad_normalized: Address,
        grad_values: Address,
        **tail: Any,
    ) -> None: ...
    def propagate(
        self,
        *,
        n: int,
        capacity: int,
        num_classes: int,
        is_double: bool,
        crow: Address,
        col: Address,
        values: Address,
        fixed: Address,
        boundary: Address,
        has_initial: bool,
        prior: Address,
        alpha: float,
        prior_strength: float,
        tol: float,
        max_iter: int,
        result: Address,
        residual: Address,
        reachable: Address,
        used_tol: Address,
        iterations: Address,
        **tail: Any,
    ) -> None: ...
    def propagate_backward(
        self,
        *,
        n: int,
        capacity: int,
        num_classes: int,
        is_double: bool,
        crow: Address,
        col: Address,
        values: Address,
        fixed: Address,
        reachable: Address,
        prior: Address,
        result: Address,
        grad_result: Address,
        alpha: float,
        prior_strength: float,
        tol: Address,
        max_iter: int,
        grad_values: Address,
        residual: Address,
        iterations: Address,
        **tail: Any,
    ) -> None: ...
    def dense_unit_rows(
        self, *, n: int, cols: int, is_double: bool, x: Address, unit: Address, inverse_norms: Address, **tail: Any
    ) -> None: ...
    def dense_unit_rows_backward(
        self,
        *,
        n: int,
        cols: int,
        is_double: bool,
        unit: Address,
        inverse_norms: Address,
        grad_unit: Address,
        grad: Address,
        **tail: Any,
    ) -> None: ...
    def dense_loss(
        self,
        *,
        n: int,
        num_classes: int,
        is_double: bool,
        cosines: Address,
        inverse_sigma: Address,
        labels: Address,
        targets: Address,
        scored: Address,
        class_weight: Address,
        alpha: float,
        normalization: str,
        target: str,
        smoothing: float,
        loss: Address,
        result: Address,
        reachable: Address,
        lacks: Address,
        grad_cosines: Address,
        grad_inverse_sigma: Address,
        **tail: Any,
    ) -> None: ...

class CpuCore(Core, Protocol):
    def dense_product(
        self, *, n: int, k: int, m: int, a: Address, b: Address, transposed: bool, c: Address, threads: int
    ) -> None: ...
    def edge_gradients(
        self, *, n: int, classes: int, stride: int, x: Address, adjoint: Address, gradient: Address, threads: int
    ) -> None: ...
    def eliminate(self, *, n: int, stride: int, a: Address) -> None: ...

class CudaCore(Core, Protocol):
    def problem(self, device: int) -> str: ...
    def eliminate(self, *, n: int, stride: int, a: Address, device: int, stream: int) -> None: ...
    def flow(
        self,
        *,
        rows: int,
        columns: int,
        is_double: bool,
        crow: Address,
        col: Address,
        weight: Address,
        excess: Address,
        x: Address,
        right: Address,
        out: Address,
        **tail: Any,
    ) -> None: ...
    def flow_gradient(
        self,
        *,
        n: int,
        columns: int,
        crow: Address,
        col: Address,
        lam: Address,
        f: Address,
        pull: Address,
        reachable: Address,
        lam_noise: float,
        f_noise: float,
        grad_values: Address,
        **tail: Any,
    ) -> None: ...

def isa() -> str: ...

cpu: CpuCore
cuda: CudaCore
cuda_architectures: str
