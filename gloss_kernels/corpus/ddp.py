"""What DistributedDataParallel would do to a memory bank."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def refuse_ddp(module: nn.Module) -> None:
    """Raises in a step inside the forward of DistributedDataParallel on several processes.

    There each process writes the rows of its own documents only, and at its next forward takes rank 0's buffers for
    its own: the rows of all other processes are lost.
    """
    ddp = DistributedDataParallel._get_active_ddp_module()  # type: ignore[no-untyped-call]
    processes = 1 if ddp is None else ddp.process_group.size()
    if processes == 1 or all(each is not module for each in ddp.modules()):
        return
    raise RuntimeError(
        f"CorpusGLoss must be outside the module that DistributedDataParallel wraps, got it inside, in {processes} "
        "processes: each would keep the rows of its own documents only, and lose them to the buffers of rank 0. It has "
        "no parameters: call it beside the wrapped module, with the rows of all processes, "
        "torch.cat(torch.distributed.nn.functional.all_gather(embeddings)), and the document_ids likewise"
    )
