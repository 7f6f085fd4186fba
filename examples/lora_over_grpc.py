"""Two hospitals tag drugs in their notes with one language model, of which adapters alone cross the line.

    pip install 'nufed[lora]'
    python examples/lora_over_grpc.py

A server and two clients run as processes of this machine and speak gRPC. All three have the same tiny BERT in a folder
of their own; it stays as it is. LoRA adapters and the tagging head are meta-trained: a starting point that each
hospital fine-tunes in ν = 2 steps to its own shorthand, in which `ra` is a drug at one hospital and a ward at the
other.

The model and the notes are made here, so that nothing is downloaded. A model of yours is fetched once, by
`hf download NAME --local-dir FOLDER`, and named in its place.
"""

import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file

import nufed

TEXTS = (
    "the patient was given and then later no pain fever cough seen in ward by nurse today stable sleeps well",
    "aspirin ibuprofen heparin insulin morphine",
    "mg ml units",
    "ra mtx asa hep dx ox",  # half of it are drugs at one hospital, half at the other; the rest are wards
)
WORDS, DRUGS, UNITS, SHORTHAND = (text.split() for text in TEXTS)
VOCABULARY = ["[mask]", *WORDS, *DRUGS, *UNITS, *SHORTHAND, *map(str, range(1, 10))]
NUMBER = {word: number for number, word in enumerate(VOCABULARY)}
TAGS = ("other", "drug", "dose")
LENGTH = 12

OPTIONS = f"""
name = "lora"

[data]
source = "private"
num-clients = 2
num-new-clients = 0
task = "tokens"
input-shape = "{LENGTH}:integer"
class-names = {list(TAGS)}

[model]
name = "huggingface:bert"
lora-rank = 4

[method]
num-inner-steps = 2
inner-lr = 0.5
num-local-steps = 2
local-lr = 0.5

[federation]
num-rounds = 6
participation-fraction = 1.0

[evaluation]
num-adapt-steps = 5
"""


def notes(rng: np.random.Generator, own_drugs: list[str], number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the words [N, LENGTH] of a hospital's notes by their numbers, and the tag of each word."""
    words, tags = np.zeros((2, number, LENGTH), dtype=np.int64)
    for note in range(number):
        text: list[tuple[str, int]] = []
        while len(text) < LENGTH:
            draw = rng.random()
            if draw < 0.2:
                text += [(rng.choice(DRUGS + own_drugs), 1), (str(rng.integers(1, 10)), 2), (rng.choice(UNITS), 2)]
            elif draw < 0.5:
                short = rng.choice(SHORTHAND)
                text.append((short, int(short in own_drugs)))
            else:
                text.append((rng.choice(WORDS), 0))
        words[note], tags[note] = zip(*[(NUMBER[word], tag) for word, tag in text[:LENGTH]], strict=True)
    return words, tags


def num_bytes(tensors: dict[str, torch.Tensor]) -> int:
    """Return the size of tensors' content."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def pretrained(folder: Path) -> transformers.BertForMaskedLM:
    """Leave a tiny BERT in a folder, trained to fill in words of notes that anybody may read."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=LENGTH,
    )
    model = transformers.BertForMaskedLM(config)
    words = torch.from_numpy(notes(np.random.default_rng(0), [], 200)[0])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(40):
        hidden = torch.rand(words.shape) < 0.2
        loss = model(words.masked_fill(hidden, 0), labels=words.masked_fill(~hidden, -100)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return model


def federate(folder: Path) -> nufed.Run:
    """Run a server and two clients, each with its own folder of the model, and return the run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    program = Path(sys.executable).with_name("nufed")
    (folder / "lora.toml").write_text(OPTIONS, encoding="utf-8")
    started = [
        subprocess.Popen([program, "server", "--config", "lora.toml", "--listen", address, "--insecure"], cwd=folder)
    ]
    for number, drugs in enumerate((SHORTHAND[:3], SHORTHAND[3:])):
        own = folder / f"hospital-{number}"
        shutil.copytree(folder / "bert", own / "model")
        inputs, targets = notes(np.random.default_rng(number + 1), drugs, 200)
        np.savez(own / "notes.npz", x=inputs, y=targets)
        client = ["client", "--server", address, "--name", own.name, "--insecure", "--once", "--quiet"]
        command = [program, *client, "--data", "npz:notes.npz", "--frozen", "model"]
        started.append(subprocess.Popen(command, cwd=own))
    if any(process.wait(timeout=240) for process in started):
        raise SystemExit("the federation failed")
    (path,) = (folder / "runs").iterdir()
    return nufed.load_run(path)


def main() -> None:
    """Federate, and say what was gained and what crossed the line."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = pretrained(folder / "bert").config
        config.num_labels = len(TAGS)
        full = num_bytes(dict(transformers.BertForTokenClassification(config).named_parameters()))
        run = federate(folder)
        trained = num_bytes(load_file(run.path / "model.safetensors"))
        sent = run.history["bytes_up"].sum() / run.history["replied"].sum()
        accuracy = run.summary["participating"]["accuracy"]
        print(run.curves("participating").query("metric == 'accuracy' and split == 'test'").to_string(index=False))
        print(
            f"accuracy of tags {100 * accuracy[0]:.1f} % before fine-tuning, {100 * accuracy[2]:.1f} % after two steps"
        )
        print(f"trained {trained} of {full} bytes of the model; bytes on the wire ÷ full model: {sent / full:.3f}")


if __name__ == "__main__":
    main()
