"""`gloss-kernels finetune` on tiny documents and a tiny random BERT: results, resuming, bad input."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
for extra in ("transformers", "tokenizers", "sklearn", "matplotlib", "safetensors"):
    pytest.importorskip(extra, reason=f"{extra} is not installed: pip install '.[demo]'")

from conftest import PYTHON  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from gloss_kernels.cli.main import main, parser  # noqa: E402
from gloss_kernels.finetune import clock, command, data, docstrings, encoder, training  # noqa: E402

TOPICS = {
    "sport": "ball goal team player match score win league coach field",
    "food": "bread soup salt oven cook taste sugar plate spoon butter",
    "sky": "star moon cloud rain wind storm sun comet planet night",
}


def write_csv(path: Path, documents: list[tuple[str, str]], header: tuple[str, ...] = ("text", "label")) -> str:
    stream = io.StringIO()
    csv.writer(stream).writerows([header, *documents])
    content = stream.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def make_documents(count: int, seed: int) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    every = " ".join(TOPICS.values()).split()
    labels = [list(TOPICS)[i % len(TOPICS)] for i in range(count)]
    return [
        (" ".join(rng.choices(TOPICS[label].split(), k=rng.randint(2, 5)) + rng.choices(every, k=2)), label)
        for label in labels
    ]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Three files of documents and the folder of a model: paths by name."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *" ".join(TOPICS.values()).split()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "model")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=32,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(folder / "model")
    paths = {name: write_csv(folder / f"{name}.csv.gz", make_documents(n, n)) for name, n in
             {"train": 61, "val": 24, "test": 30}.items()}  # fmt: skip
    return {**paths, "model": str(folder / "model")}


@pytest.fixture
def words(tiny: dict[str, str]) -> list[str]:
    """A command line that trains in a second; later words override earlier ones."""
    files = [word for name in ("train", "val", "test", "model") for word in (f"--{name}", tiny[name])]
    fast = "--epochs 3 --batch-size 20 --learning-rate 0.01 --max-length 16 --precision fp32 --device cpu --patience 0"
    return ["finetune", *files, *fast.split()]


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def without_times(value):
    """metrics.json without what a clock decides."""
    if isinstance(value, dict):
        return {key: without_times(v) for key, v in value.items() if "seconds" not in key}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def saved_accuracy(folder: Path, tiny: dict[str, str]) -> float:
    """Test accuracy of the saved model, computed from its files alone."""
    description = json.loads((folder / "model" / "head.json").read_text())
    loaded, tokenizer = encoder.load_encoder(str(folder / "model"), 16, seed=0)
    pooling, unit_rows = description["pooling"], description["unit_rows"]
    model = encoder.Classifier(loaded, tokenizer, pooling, len(TOPICS), unit_rows=unit_rows, seed=9)
    model.head.load_state_dict(load_file(folder / "model" / "head.safetensors"))
    test = data.read_csv(tiny["test"])
    embeddings = model.embed(encoder.tokenize(tokenizer, test.texts, 16), torch.device("cpu"), "fp32")
    with torch.no_grad():
        predicted = [description["classes"][i] for i in model.scores(embeddings).argmax(1).tolist()]
    return sum(p == t for p, t in zip(predicted, test.labels, strict=True)) / len(predicted)


@pytest.mark.parametrize(
    "options",
    [
        "--loss ce --class-weights balanced --pooling cls",
        "--loss gloss --sigma root --neighbors 5",
        "--loss ce+gloss --sigma self-tuning",
        "--loss ce+gloss --lambda 0.3 --sigma mst --class-weights balanced --precision bf16",
        "--graph corpus --class-weights balanced",
        "--graph corpus --loss gloss --sigma root --neighbors 5",
    ],
)
def test_end_to_end(options: str, words: list[str], tiny: dict[str, str], tmp_path: Path, capsys) -> None:
    assert main([*words, "--epochs", "8", *options.split(), "--output", str(tmp_path)]) == 0
    result = metrics(tmp_path)
    assert result["test"]["accuracy"] > 0.6  # three classes: chance is 0.33
    assert result["test"]["silhouette"] > result["before"]["silhouette"]
    assert result["test"]["accuracy"] == pytest.approx(
        saved_accuracy(tmp_path, tiny), abs=0.04 if "bf16" in options else 0
    )
    assert len(result["history"]) == 8 and (result["sigma"] is None) == ("--loss ce " in options)
    for name in ("curves.png", "projection.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "checkpoint.pt").exists()
    assert "| loss" in capsys.readouterr().out


def test_sentence_transformers_loads_the_saved_model(words: list[str], tiny: dict[str, str], tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers")
    assert main([*words, "--pooling", "cls", "--epochs", "1", "--output", str(tmp_path)]) == 0
    model = st.SentenceTransformer(str(tmp_path / "model"), device="cpu")
    ours = load_file(tmp_path / "test_embeddings.safetensors")["after"]
    theirs = model.encode(data.read_csv(tiny["test"]).texts, convert_to_tensor=True, show_progress_bar=False)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_the_best_weights_are_scored_and_saved(words, tiny, tmp_path, monkeypatch) -> None:
    seen = []

    def validate(trainer: training.Trainer) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in trainer.model.head.state_dict().items()})
        return {"accuracy": 0.5, "macro_f1": 1 - 0.1 * len(seen)}

    monkeypatch.setattr(training.Trainer, "validate", validate)
    assert main([*words, "--epochs", "4", "--patience", "2", "--output", str(tmp_path)]) == 0
    result = metrics(tmp_path)
    assert result["best_epoch"] == 1 and len(result["history"]) == 3  # two epochs without a better one
    head = load_file(tmp_path / "model" / "head.safetensors")
    assert torch.equal(head["weight"], seen[0]["weight"]) and not torch.equal(head["weight"], seen[-1]["weight"])
    assert result["test"]["accuracy"] == saved_accuracy(tmp_path, tiny)


def test_a_plateau_ends_with_patience(words, tmp_path, monkeypatch) -> None:
    """An epoch that is as good as the best so far is no better one."""
    monkeypatch.setattr(training.Trainer, "validate", lambda _: {"accuracy": 0.5, "macro_f1": 0.5})
    assert main([*words, "--epochs", "6", "--patience", "2", "--output", str(tmp_path)]) == 0
    result = metrics(tmp_path)
    assert result["best_epoch"] == 1 and len(result["history"]) == 3


@pytest.mark.parametrize("options", ["--loss gloss", "--loss ce+gloss --compare", "--graph corpus"])
def test_a_killed_run_resumes_to_the_same_result(options, words, tmp_path, monkeypatch, capsys) -> None:
    """Killed in the middle of the second epoch (of the second run with --compare)."""
    words = [*words, *options.split()]
    assert main([*words, "--output", str(tmp_path / "whole")]) == 0
    calls, last = 0, 16 if "--compare" in options else 6  # four steps an epoch
    step = training.Trainer._step

    def killed(trainer, rows, sums):
        nonlocal calls
        calls += 1
        if calls == last + 1:
            raise KeyboardInterrupt
        return step(trainer, rows, sums)

    monkeypatch.setattr(training.Trainer, "_step", killed)
    capsys.readouterr()
    assert main([*words, "--output", str(tmp_path / "killed")]) == 130
    line = capsys.readouterr().err.strip().splitlines()[-1]
    command = shlex.split(line.partition("to resume: ")[2])
    assert command[0] == "gloss-kernels" and command[-1] == "--resume"
    assert main(command[1:]) == 0
    for run in ("ce", "ce_gloss") if "--compare" in options else (".",):
        whole, killed_run = tmp_path / "whole" / run, tmp_path / "killed" / run
        assert without_times(metrics(killed_run)) == without_times(metrics(whole))
        for name in ("model.safetensors", "head.safetensors"):
            one, two = load_file(whole / "model" / name), load_file(killed_run / "model" / name)
            assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    capsys.readouterr()
    assert main(command[1:]) == 0  # a finished run prints its results again
    assert "finished already" in capsys.readouterr().out


def test_compare(words, tmp_path, capsys) -> None:
    assert main([*words, "--compare", "--output", str(tmp_path)]) == 0
    table = (tmp_path / "comparison.md").read_text()
    assert table in capsys.readouterr().out
    for word in ("accuracy", "macro-F1", "silhouette", "seconds per epoch", "| cross entropy + G-Loss |"):
        assert word in table
    ce, both = json.loads((tmp_path / "comparison.json").read_text())["runs"]
    assert ce["before"] == both["before"]
    # The same seed: the first epoch starts from the same head and sees the same batches.
    assert ce["settings"] == {**both["settings"], "loss": "ce"}
    assert (tmp_path / "curves.png").exists() and (tmp_path / "projection.png").exists()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_a_terminal_shows(words, tmp_path, capsys, monkeypatch) -> None:
    """One progress line of ours with the time that is left, wiped at the end; no bar or warning of another library."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main([*words, "--compare", "--output", str(tmp_path)]) == 0
    shown = terminal.getvalue()
    lines = [line.strip() for line in shown.split("\r") if line.strip()]
    pattern = r"(reading|epoch \d/3 +\d+ %|validation|test documents|pictures)(, about (\d+ min)? ?(\d+ s)? left)?"
    assert lines and all(re.fullmatch(pattern, line) for line in lines), lines
    assert any(line.startswith("epoch 2/3  26 %, about ") for line in lines)
    assert "\n" not in shown and shown.endswith(" \r")
    out = capsys.readouterr().out
    assert len(re.findall(r"^  about (\d+ min)? ?(\d+ s)? in all, by the first 5 batches$", out, re.M)) == 1
    assert len(re.findall(r"  epoch \d/3: .* s, about .* left$", out, re.M)) == 6
    assert f"pictures: {tmp_path / 'projection.png'}" in out


def test_the_clock_knows_what_is_left(monkeypatch) -> None:
    """Batches of 10 documents in 2 s each; whoever slows down is told so."""
    now = 0.0
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now)
    timer = clock.Clock()
    timer.left, timer.panels = 300.0, 3

    def batch(seconds: float) -> float:
        nonlocal now
        with timer.timed(10, training=True):
            now += seconds
        return timer.seconds_left() or 0.0

    assert batch(50) == 0, "the first one warms up, and says nothing"
    pictures = 3 * clock.PANEL_SECONDS
    for left in (280, 270, 260):
        assert batch(2) == pytest.approx(left * 0.2 + pictures)
    slower = [batch(4) for _ in range(10)]
    assert slower[-1] > 1.3 * (160 * 0.2) + pictures, "half the pace moves the estimate"
    assert timer.elapsed() == 96


def test_work_by_hand() -> None:
    counts = {"train": 100, "val": 20, "test": 10}
    settings = SimpleNamespace(train_layers=2, graph="batch", sigma="0.5", loss="ce+gloss", epochs=4)
    done = clock.work(settings, counts, 6, 50)
    read = 0.6  # forward of six layers; backward, at twice the cost, of two: 6 / (6 + 2 * 2)
    assert done.read == pytest.approx(read) and done.epoch == pytest.approx(100 + 20 * read)
    assert done.all() == pytest.approx(read * 10 + 4 * (100 + 20 * read) + read * 10)
    settings = SimpleNamespace(train_layers=None, graph="corpus", sigma="root", loss="gloss", epochs=1)
    done = clock.work(settings, counts, 1, 50)
    assert done.before == pytest.approx((10 + 100 + 50) / 3) and done.after == pytest.approx((10 + 100) / 3)
    assert done.epoch == pytest.approx(100 + (20 + 50) / 3)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1 s"),
        (7, "5 s"),
        (58, "1 min"),
        (100, "1 min 40 s"),
        (597, "10 min"),
        (7000, "117 min"),
        (9000, "2 h 30 min"),
    ],
)
def test_time_in_words(seconds: float, text: str) -> None:
    assert clock.in_words(seconds) == text


def parsed(line: str) -> Namespace:
    return parser().parse_args(["finetune", *line.split()])


def test_the_demo_has_its_own_defaults() -> None:
    cpu = torch.device("cpu")
    demo, own = (command.choose_settings(parsed(line), cpu) for line in ("", "--train x.csv"))
    assert (demo.epochs, demo.max_length, demo.train_layers) == (3, 32, 2) and (demo.graph, own.graph) == (
        "corpus",
        "batch",
    )
    for line in ("--labeled-fraction 0.5", "--sigma self-tuning", "--graph batch", "--loss ce --no-compare"):
        assert command.choose_settings(parsed(line), cpu).graph == "batch"
    assert command.wants_comparison(parsed(""))
    assert (own.epochs, own.max_length, own.train_layers) == (5, 64, None)
    assert not command.wants_comparison(parsed("--train x.csv"))
    assert not command.wants_comparison(parsed("--no-compare")) and command.wants_comparison(
        parsed("--train x --compare")
    )
    said = command.choose_settings(parsed("--epochs 1 --max-length 9 --train-layers 6"), cpu)
    assert (said.epochs, said.max_length, said.train_layers) == (1, 9, 6)
    assert command.choose_settings(parsed("--model other"), cpu).train_layers is None


def test_layers_that_are_not_trained_stay(words, tiny, tmp_path, capsys) -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig.from_pretrained(tiny["model"], num_hidden_layers=3)
    shutil.copytree(tiny["model"], tmp_path / "three")
    BertModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "three")
    line = [
        *words,
        "--model",
        str(tmp_path / "three"),
        "--epochs",
        "1",
        "--overwrite",
        "--output",
        str(tmp_path / "run"),
    ]
    old = load_file(tmp_path / "three" / "model.safetensors")
    for count in (1, 2):
        assert main([*line, "--train-layers", str(count)]) == 0
        new = load_file(tmp_path / "run" / "model" / "model.safetensors")
        moved = {name for name in old if not torch.equal(old[name], new[name])}
        layers = {int(name.split("layer.")[1][0]) for name in moved}
        assert layers == set(range(3 - count, 3)), moved
    assert main([*line, "--train-layers", "4"]) == 2
    assert "--train-layers must be at most the 3 layers of the encoder, got 4" in capsys.readouterr().err


def test_one_file_is_split_by_class(tmp_path) -> None:
    path = write_csv(tmp_path / "all.csv", [*make_documents(60, 0), ("only one of its kind", "rare")])
    dataset = data.load_dataset(path, None, None, limit=20, seed=1)
    assert [len(dataset.train), len(dataset.val), len(dataset.test)] == [20, 9, 9]
    assert dataset.classes == ["food", "rare", "sky", "sport"]
    assert "rare" in dataset.train.labels and set(dataset.test.labels) == set(TOPICS)
    again = data.load_dataset(path, None, None, limit=20, seed=1)
    assert dataset == again and dataset.fingerprint() == again.fingerprint()
    assert dataset.fingerprint() != data.load_dataset(path, None, None, limit=20, seed=2).fingerprint()


def test_a_csv_file_as_people_write_it(tmp_path, capsys) -> None:
    """Quotes, commas and line breaks within a text, further columns, blank lines, a byte order mark, gzip by any name;
    labels that look alike are one class, under the spelling that came first."""
    text = 'id,text,label\n1,"a, ""b""\nc",caf\u00e9\n\n2,d,cafe\u0301\n3,5" disk,\u200bcaf\u00e9\n4,e,sky\n'
    for name, content in (("a.csv", text.encode("utf-8-sig")), ("a.CSV.GZ", gzip.compress(text.encode()))):
        (tmp_path / name).write_bytes(content)
        documents = data.read_csv(str(tmp_path / name))
        assert documents.texts == ['a, "b"\nc', "d", '5" disk', "e"]
        (spelt,) = data.one_spelling([documents])
        assert spelt.labels == ["caf\u00e9", "caf\u00e9", "caf\u00e9", "sky"]
        err = capsys.readouterr().err
        assert "label 'cafe\\u0301' looks like 'caf\\xe9'" in err and err.count("warning: ") == err.count("\n") == 2


@pytest.mark.parametrize("size", [2, 3, 20])
@pytest.mark.parametrize("n", [2, 3, 20, 21, 41, 61])
def test_no_batch_of_one(n: int, size: int) -> None:
    batches = list(encoder.shuffled_batches(n, size, seed=0, epoch=1))
    assert sorted(row for batch in batches for row in batch) == list(range(n))
    assert all(2 <= len(batch) <= max(size, 3) for batch in batches)
    assert batches == list(encoder.shuffled_batches(n, size, seed=0, epoch=1))
    assert n <= 3 or batches != list(encoder.shuffled_batches(n, size, seed=0, epoch=2))


BAD = {
    "missing file": ("--train nowhere.csv", "nowhere.csv must be a CSV file, got no such file"),
    "missing column": ("--train {dir}/column.csv", "column.csv must have the columns text and label, got text, topic"),
    "empty text": ("--train {dir}/empty.csv", "empty.csv, line 3: text must not be empty"),
    "empty label": ("--train {dir}/unlabelled.csv", "line 2: label must not be empty"),
    "empty file": ("--train {dir}/nothing.csv", "nothing.csv must have the columns text and label, got none"),
    "no documents": ("--test {dir}/header.csv", "header.csv must have documents, got none"),
    "cut gzip": ("--train {dir}/cut.csv.gz", "cut.csv.gz cannot be read as CSV: Compressed file ended before"),
    "not UTF-8": ("--train {dir}/latin.csv", "latin.csv, line 2: must be UTF-8, got the byte 0xe9"),
    "UTF-16": ("--train {dir}/utf16.csv", "utf16.csv must be a CSV file in UTF-8, got UTF-16"),
    "zip": ("--train {dir}/table.xlsx", "table.xlsx must be a CSV file in UTF-8, got a zip archive"),
    "folder": ("--train {dir}", "must be a CSV file, got a folder"),
    "device": ("--train /dev/null", "/dev/null must have the columns text and label, got none"),
    "long row": ("--train {dir}/long.csv", "long.csv, line 4: must have 2 fields as the header, got 3"),
    "short row": ("--train {dir}/short.csv", "short.csv, line 2: must have 2 fields as the header, got 1"),
    "repeated column": ("--train {dir}/twice.csv", "text and label, got text, label, label: label 2 times"),
    "open quote": ("--train {dir}/quote.csv", "quote.csv, line 3 to 5: cannot be read as CSV: a quote is opened and"),
    "text behind a quote": ("--train {dir}/behind.csv", "behind.csv, line 2: cannot be read as CSV: ',' expected"),
    "invisible label": ("--train {dir}/invisible.csv", "invisible.csv, line 2: label must not be empty"),
    "line without end": ("--train {dir}/endless.csv.gz", "line 1: must have at most 16,777,216 characters, got more"),
    "bomb": ("--train {dir}/bomb.csv.gz", "unpacks to more than 100 times its size"),
    "two of each class": ("--train {dir}/two.csv", "must have a class of 3 documents or more, to hold some out for"),
    "one class": ("--train {dir}/one.csv", "must have two classes or more, got only 'sky'"),
    "absent class": ("--test {dir}/absent.csv", "absent.csv must have the classes of "),
    "unknown model": ("--model {dir}/no-model", "no-model cannot be loaded"),
    "batch of one": ("--batch-size 1", "must be at least 2, got 1"),
    "lambda": ("--lambda 1.5", "must be a number from 0 to 1, got '1.5'"),
    "negative sigma": ("--sigma -1", "must be a number above 0, or root, mst, self-tuning, got '-1'"),
    "sigma word": ("--sigma wide", "must be a number above 0, or root, mst, self-tuning, got 'wide'"),
    "labeled fraction": ("--labeled-fraction 1", "between 0 and 1"),
    "neighbors": ("--neighbors 20", "--neighbors must be less than --batch-size 20, got 20"),
    "neighbors of the corpus": (
        "--graph corpus --neighbors 61",
        "--neighbors must be at most 60, the other training documents, got 61",
    ),
    "sigma of the corpus": (
        "--graph corpus --sigma self-tuning",
        "--sigma must be a number, root or mst with --graph corpus, got self-tuning",
    ),
    "labeled fraction of the corpus": ("--graph corpus --labeled-fraction 0.5", "a batch hides all its labels"),
    "graph without its loss": (
        "--graph corpus --loss ce",
        "--loss must be gloss or ce+gloss with --graph corpus, got ce",
    ),
    "epochs": ("--epochs 0", "at least 1"),
    "learning rate": ("--learning-rate nan", "above 0"),
    "max length": ("--max-length 64", "--max-length must be at most 32"),
    "limit": ("--limit 2", "--limit must be at least 3, the classes of"),
    "unknown device": ("--device abacus", "--device abacus cannot be used"),
    "loss": ("--loss mse", "invalid choice: 'mse'"),
    "unknown option": ("--fast", "unrecognized arguments: --fast"),
    "resume where": ("--resume", "--resume needs --output"),
    "output is a file": ("--output {dir}/one.csv", "--output must be a folder, got the file"),
    "resume and overwrite": ("--output {dir}/run --resume --overwrite", "exclude each other"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_code_2(case: str, words, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    documents = make_documents(12, 0)
    write_csv(tmp_path / "column.csv", documents, ("text", "topic"))
    write_csv(tmp_path / "empty.csv", [documents[0], ("  ", "sky")])
    write_csv(tmp_path / "unlabelled.csv", [("a star", "")])
    write_csv(tmp_path / "one.csv", [(text, "sky") for text, _ in documents])
    write_csv(tmp_path / "absent.csv", [*documents, ("a song", "music")])
    write_csv(tmp_path / "header.csv", [])
    (tmp_path / "nothing.csv").write_text("")
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(b"text,label\na,b\n" * 9)[:-9])
    (tmp_path / "utf16.csv").write_bytes("text,label\na,b\n".encode("utf-16"))
    (tmp_path / "table.xlsx").write_bytes(b"PK\x03\x04")
    (tmp_path / "long.csv").write_text('text,label\n"one, two",sky\n\nthree, four,sky\n')
    (tmp_path / "short.csv").write_text("text,label\nsky\n")
    (tmp_path / "twice.csv").write_text("text,label,label\na,b,c\n")
    (tmp_path / "quote.csv").write_text('text,label\na,b\n"c,d\ne,f\ng,h\n')
    (tmp_path / "behind.csv").write_text('text,label\n"Hello" she said,b\n')
    (tmp_path / "invisible.csv").write_text("text,label\na,\u200b\n", encoding="utf-8")
    (tmp_path / "endless.csv.gz").write_bytes(gzip.compress(bytes(1 << 25)))
    (tmp_path / "bomb.csv.gz").write_bytes(gzip.compress(b"text,label\n" + (b"a" * 1000 + b",b\n") * (1 << 15)))
    (tmp_path / "two.csv").write_text("text,label\na,b\nc,b\nd,e\nf,e\n")
    (tmp_path / "latin.csv").write_bytes("text,label\ncafé,b\n".encode("latin-1"))
    options, message = BAD[case]
    if case == "two of each class":
        del words[words.index("--val") : words.index("--model")]
    assert main([*words, *options.format(dir=tmp_path).split()]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err, err


def test_an_output_folder_with_a_run_is_guarded(words, tmp_path, capsys) -> None:
    out = ["--output", str(tmp_path / "run")]
    words = [*words, "--epochs", "1", "--loss", "ce"]
    assert main([*words, *out, "--resume"]) == 0  # nothing there yet: starts
    assert main([*words, *out]) == 2
    assert "--resume continues it, --overwrite replaces it" in capsys.readouterr().err
    assert main([*words, *out, "--resume", "--epochs", "2"]) == 2
    assert "holds another run: epochs was 1, now 2" in capsys.readouterr().err
    assert main([*words, *out, "--resume", "--limit", "30"]) == 2
    assert "holds another run: its documents differ" in capsys.readouterr().err
    assert main([*words, *out, "--resume", "--compare"]) == 2
    assert main([*words, *out, "--overwrite", "--epochs", "2"]) == 0
    assert len(metrics(tmp_path / "run")["history"]) == 2
    (tmp_path / "run" / "metrics.json").unlink()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"torn")
    capsys.readouterr()
    assert main([*words, *out, "--resume", "--epochs", "2"]) == 2
    assert "checkpoint.pt cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["settings.json", "model/config.json", "metrics.json"])
@pytest.mark.parametrize("option", ["", "--overwrite"])
def test_a_foreign_folder_is_left_alone(name: str, option: str, words, tmp_path, capsys) -> None:
    theirs = tmp_path / "theirs" / name
    theirs.parent.mkdir(parents=True)
    theirs.write_text('{"editor.fontSize": 12}')
    assert main([*words, "--output", str(tmp_path / "theirs"), *option.split()]) == 2
    assert "but no run of gloss-kernels" in capsys.readouterr().err
    assert theirs.read_text() == '{"editor.fontSize": 12}'


def test_a_run_does_not_replace_what_it_reads(words, tiny, tmp_path, capsys) -> None:
    run = tmp_path / "run"
    assert main([*words, "--epochs", "1", "--loss", "ce", "--output", str(run)]) == 0
    shutil.copy(tiny["train"], run / "model" / "mine.csv.gz")
    (tmp_path / "link").symlink_to(run / "model")
    again = [*words, "--epochs", "1", "--output", str(run), "--overwrite"]
    mine = run / "model" / "mine.csv.gz"
    for option, path in (("--model", run / "model"), ("--model", tmp_path / "link"), ("--train", mine)):
        capsys.readouterr()
        assert main([*again, option, str(path)]) == 2
        assert f"whose model is the {option} of this run" in capsys.readouterr().err
    assert (run / "metrics.json").is_file() and (run / "model" / "config.json").is_file()


def test_a_checkpoint_of_another_version(words, tmp_path, capsys) -> None:
    run = [*words, "--epochs", "2", "--loss", "ce", "--output", str(tmp_path)]
    assert main(run) == 0
    (tmp_path / "metrics.json").unlink()
    for state, message in (
        (
            {"format": 2},
            "must be of format 1, which this version of gloss_kernels reads, got 2; remove it",
        ),
        ({"model": {"another.name": torch.ones(3)}}, "is not a state of this run (RuntimeError: "),
        ({"net": 1}, "is not a state of this run (KeyError: 'model'); remove it to start again"),
        ([1], "cannot be read (AttributeError); remove it to start again"),
    ):
        torch.save(state, tmp_path / "checkpoint.pt")
        capsys.readouterr()
        assert main([*run, "--resume"]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, err
    (tmp_path / "checkpoint.pt").unlink()
    assert main([*run, "--resume"]) == 0


def test_overwrite_removes_only_its_own(words, tmp_path) -> None:
    run = [*words, "--epochs", "1", "--loss", "ce", "--output", str(tmp_path / "run")]
    assert main(run) == 0
    for other in (".vscode/settings.json", "notes.md", "gloss/settings.json"):
        (tmp_path / "run" / other).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / other).write_text("{}")
    assert main([*run, "--overwrite"]) == 0
    for other in (".vscode/settings.json", "notes.md", "gloss/settings.json"):
        assert (tmp_path / "run" / other).read_text() == "{}"


def test_results_that_cannot_be_written_keep_the_checkpoint(words, tmp_path, capsys, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "projection.png")

    run = [*words, "--epochs", "1", "--output", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr("gloss_kernels.finetune.comparison.draw", full)
        assert main(run) == 2
    err = capsys.readouterr().err
    assert "No space left on device" in err and "--resume" in err and "Traceback" not in err
    assert (tmp_path / "run" / "checkpoint.pt").is_file() and not (tmp_path / "run" / "metrics.json").is_file()
    assert main([*run, "--resume"]) == 0


def test_an_encoder_decoder_is_refused(words, tmp_path, capsys, tiny) -> None:
    from transformers import T5Config, T5Model

    shutil.copytree(tiny["model"], tmp_path / "t5")
    T5Model(T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    assert main([*words, "--model", str(tmp_path / "t5")]) == 2
    assert "--model must be an encoder, such as BERT, got " in capsys.readouterr().err


def test_info_and_version(capsys) -> None:
    assert main(["info"]) == 0
    assert "backends" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out.startswith("gloss-kernels 0.")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PYTHON, "-c", code], capture_output=True, text=True, check=False)


def test_help_needs_no_extra_and_a_missing_one_is_named() -> None:
    code = """
import sys
sys.modules["transformers"] = None
from gloss_kernels.cli.main import main
assert main([]) == 0
try:
    main(["finetune", "--help"])
except SystemExit as end:
    assert end.code == 0
assert not {"sklearn", "matplotlib", "safetensors"} & sys.modules.keys()
sys.exit(main(["finetune"]))
"""
    done = run_python(code)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "error: transformers is missing: pip install '.[demo]'\n"


def test_docstring_documents() -> None:
    texts, labels = docstrings.docstring_documents()
    if len(set(labels)) < 8:
        pytest.skip("fewer than 8 of the libraries are installed here")
    assert len(texts) == len(labels) == len(set(texts)) >= 1500
    for text, label in zip(texts, labels, strict=True):
        assert len(text) >= 40
        assert label.lower().replace("_", " ") not in text.lower().split()
        if label != "PIL":  # "compile" is not a hint
            assert label.lower() not in text.lower(), text
    assert docstrings._documents("email", 0, set()) == docstrings._documents("email", 0, set())


@pytest.mark.parametrize(
    ("text", "library", "expected"),
    [
        (
            "A PyTorch tensor, as in ``torch.nn`` or TorchScript.\n\nArgs:\n    x: it",
            "torch",
            "A tensor, as in .nn or .",
        ),
        ("Fit an sklearn model.\n\n>>> import sklearn", "sklearn", "Fit an model."),
        ("Call np.sum of NumPy's arrays.\n\nParameters\n----------\nx : array", "numpy", "Call .sum of 's arrays."),
    ],
)
def test_docstrings_do_not_name_their_library(text: str, library: str, expected: str) -> None:
    assert docstrings.clean(text, library) == expected
