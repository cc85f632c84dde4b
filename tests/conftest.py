"""What every test needs before torch or vLLM is imported: small thread pools, no network, no file of the
user."""

import os

for name, value in {
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "PIT_DATABASE": "none",  # a test that stores runs names its own
}.items():
    os.environ.setdefault(name, value)
