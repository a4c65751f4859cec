"""The versions that a run used, one package a line."""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version

PACKAGES = """
    torch transformers transformer-lens tokenizers huggingface-hub safetensors accelerate peft trl bitsandbytes
    datasets scikit-learn scipy numpy pandas jaxtyping einops matplotlib concept-erasure scikit-dimension pytest
"""

if __name__ == "__main__":
    print("python", platform.python_version())
    for name in sys.argv[1:] or PACKAGES.split():
        try:
            print(name, version(name))
        except PackageNotFoundError:
            print(name, "is not there")
