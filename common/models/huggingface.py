"""`huggingface:FOLDER`: a model of Hugging Face's transformers from a folder on this machine, with LoRA if asked for.

The folder holds a config.json and, where the model was trained before, its weights as safetensors; without weights the
model is drawn from the run's seed. Nothing is downloaded, and no code of the folder's is run.

LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022) leaves the weights as they are and
trains W + (α/r) B A in the place of W, with A and B of rank r. With `model.lora-rank` above 0 these, the head and what
the folder has no weights of are trained; all else is frozen, which is what comes from the folder.
"""

import importlib.util
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from nufed.common.config import ModelConfig
from nufed.common.config.lists import read_names
from nufed.common.errors import ConfigError, ModelError
from nufed.common.examples import TaskInfo
from nufed.common.settings import process_settings

NAME = "huggingface"

HEADS = {
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "causal-lm": "AutoModelForCausalLM",
    "image-classification": "AutoModelForImageClassification",
}
"""Classes of transformers by the value of `model.head`."""

_INSTALL = "pip install 'nufed[lora]'"


def build(config: ModelConfig, task: TaskInfo) -> nn.Module:
    """Return the model that `model.name` names, with the head and the adapters that its options ask for.

    Raises:
        ConfigError: a package or the folder is not there, or options do not fit the model.
        ModelError: the folder cannot be read as such a model.
    """
    for package in ("transformers", *(["peft"] if config.lora_rank else [])):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"model.name={config.name!r} needs {package}, which is not installed. {_INSTALL}")
    folder, head = _folder(config), _head(config, task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers and peft, about weights that are new and layers transposed
        model, new = _load(folder, head, task)
        return _with_lora(model, config, new) if config.lora_rank else model


def is_folder_of_model(path: Path) -> bool:
    """Return whether a path is a folder that `build` reads in the place of the one that `model.name` names."""
    return path.is_dir()


def _folder(config: ModelConfig) -> Path:
    """Return the folder to read: this machine's own, or the run's."""
    frozen, named = process_settings().frozen, config.name.partition(":")[2]
    if frozen and is_folder_of_model(frozen):
        path, origin = frozen, f"--frozen {frozen}"
    else:
        path, origin = Path(named).expanduser(), f"model.name={config.name!r}"
    if not (path / "config.json").is_file():
        there = "it has no config.json" if path.is_dir() else "there is no such folder on this machine"
        raise ConfigError(
            f"Expected {origin} to name the folder of a model of transformers, but {there}. Nothing is "
            f"downloaded: fetch it once (`hf download {named or 'NAME'} --local-dir FOLDER`) and write {NAME}:FOLDER; "
            "where it lies elsewhere on a client's machine, give --frozen FOLDER there."
        )
    return path


def _head(config: ModelConfig, task: TaskInfo) -> str:
    if config.head != "auto":
        return config.head
    if task.kind == "tokens":
        return "token-classification"
    is_image = task.input_spec is None and len(task.input_shape) == 3
    return "image-classification" if is_image else "sequence-classification"


def _load(folder: Path, head: str, task: TaskInfo) -> tuple[Any, list[str]]:
    """Return the model, and the names of its parameters that the folder has no values of; no network is used."""
    import transformers

    _quiet(transformers)
    kind = getattr(transformers, HEADS[head])
    try:
        options = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if head != "causal-lm":
            options.num_labels = task.num_outputs
        options.use_cache = False
        if getattr(options, "pad_token_id", None) is None and head == "sequence-classification":
            options.pad_token_id = getattr(options, "eos_token_id", None)
        if not any(folder.glob("*.safetensors")):
            if any(folder.glob("*.bin")):
                raise ModelError(
                    f"expected weights as safetensors in {folder}, but there are pickled ones alone, which may run "
                    "code; save them anew with model.save_pretrained(FOLDER)"
                )
            return kind.from_config(options, attn_implementation="sdpa", trust_remote_code=False), []
        model, found = kind.from_pretrained(
            folder,
            config=options,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            attn_implementation="sdpa",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError) as error:
        raise ModelError(
            f"expected a model for model.head={head} in {folder}, but transformers raised {type(error).__name__}: "
            f"{_first_line(error)}; choose another head, or put the folder right"
        ) from error
    new = [*found["missing_keys"], *(key[0] if isinstance(key, tuple) else key for key in found["mismatched_keys"])]
    return model, sorted(new)


def _with_lora(model: Any, config: ModelConfig, new: Iterable[str]) -> nn.Module:
    """Return the model with adapters, of which they, its head and what is new in it are trained.

    peft's own way of training a head keeps a second, drawn one among the frozen parameters, which would be another one
    on other processors.
    """
    import peft

    targets = config.lora_targets
    base = f"{model.base_model_prefix}."
    own = [name for name, _ in model.named_parameters()]
    head = {name for name in own if not name.startswith(base)} if any(name.startswith(base) for name in own) else set()
    lora = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha or 2 * config.lora_rank,  # type: ignore[arg-type] # peft takes fractions too
        lora_dropout=config.lora_dropout,
        target_modules=targets if targets in ("", "all-linear") else list(read_names(targets)),
    )
    if not targets:
        lora.target_modules = None
    try:
        adapted: nn.Module = peft.inject_adapter_in_model(lora, model)
    except (ValueError, KeyError, TypeError) as error:
        linear = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if _is_linear(module)})
        raise ConfigError(
            f"model.lora-targets={targets!r} is refused: {_first_line(error)} Layers of {type(model).__name__} that "
            f"can be adapted: {', '.join(linear)}, or all-linear."
        ) from error
    trained = head | set(new)
    for name, parameter in adapted.named_parameters():
        if name.replace(".base_layer.", ".") in trained:
            parameter.requires_grad_(True)
    return adapted


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _quiet(transformers: Any) -> None:
    """Let transformers speak of errors alone, and show no bars."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300]
